import json
import os
from pathlib import Path

import pytest

from benchmarks import memory_limit
from benchmarks.memory_limit import GROUPS, MemoryGroup, markdown, work

STEP = {"seconds": 61.4, "own_bytes": 1_260_000_000}


def run(**changed):
    steps = dict.fromkeys(memory_limit.STEPS, STEP)
    return {"steps": steps, "bytes": 7_108_000_000, "offload": True, "dtype": "float32", "end": "finished"} | changed


def test_the_table_has_a_row_for_each_run_and_shows_which_steps_were_reached():
    runs = [run(), run(offload=False, steps={"load": STEP}, end="ended")]
    head, _, first, second = markdown({"settings": [{"model": "m", "limit": 6_000_000_000, "runs": runs}]}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, first, second)]
    assert cells[0][3:-1] == list(memory_limit.STEPS.values())
    assert cells[1][:4] == ["m", "7.1, float32, on the disk", "6", "61 s\u00a0·\u00a01.3"]
    assert cells[2] == ["m", "7.1, float32, in memory", "6", "61 s\u00a0·\u00a01.3", *["–"] * 6, "ended"]


@pytest.mark.exhaustive
def test_all_steps_are_done_and_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work("toxloc-tiny", 12, 1 << 28, True, "float32", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["steps"]) == list(memory_limit.STEPS)
    assert all(step["seconds"] > 0 and step["own_bytes"] > 1e7 for step in result["steps"].values())
    assert result["edited"] == 8 and 1 < result["ratio"] < 1.0101
    assert result["bytes"] > result["W_out_bytes"] == 8 * 1024 * 256 * 4


@pytest.mark.skipif(not os.access(GROUPS / "memory", os.W_OK), reason="making a control group needs the right to")
def test_a_group_has_the_limit_and_is_removed():
    group = MemoryGroup(50_000_000)
    try:
        limits = [path for path in group.folder.iterdir() if path.name in ("memory.max", "memory.limit_in_bytes")]
        assert [int(path.read_text()) // 4096 for path in limits] == [50_000_000 // 4096]
    finally:
        group.close()
    assert not Path(group.folder).exists()
