import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from tests.conftest import asks_for_nothing_else
from toxloc import ToxlocError, sweep
from toxloc.sweeps import runner
from toxloc.sweeps.grid import Plan, grid_of
from toxloc.sweeps.store import Store

from .conftest import small_grid


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The grid, computed once without interruption by one worker at a time."""
    plan = Plan(grid_of(small_grid()), folder)
    out = tmp_path_factory.mktemp("sweep") / "out"
    return sweep(plan, out), out


def figures(out, cell):
    """All of a cell but what it took."""
    found = Store(out).result(cell)
    return {key: value for key, value in found.items() if key not in ("seconds", "peak_memory")}


def assert_same(one, other):
    """Equal but for the last bits: an evaluator reads a text beside others where some are known already."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    else:
        assert one == other


def assert_same_results(one, other, plan):
    for cell in plan.cells:
        assert_same(figures(one, cell), figures(other, cell))
        texts = [
            [
                json.loads(line)["completion"]
                for line in (Store(out).baseline(cell) / "completions.jsonl").read_text().splitlines()
            ]
            for out in (one, other)
        ]
        assert texts[0] == texts[1]


def test_every_cell_is_finished_and_in_the_tables(whole, plan):
    summary, out = whole
    assert len(summary.results) == 12
    assert not summary.failures
    table = pd.read_parquet(out / "results.parquet")
    known, again = (one.dropna(axis=1, how="all") for one in (table, pd.read_csv(out / "results.csv")))
    pd.testing.assert_frame_equal(known, again, check_dtype=False)
    assert list(table["id"]) == [cell.id for cell in plan.cells]
    assert (table["status"] == "done").all()
    assert (table["resident_mb"] > 100).all()
    assert json.loads((out / "summary.json").read_text())["cells"] == {"all": 12, "done": 12, "failed": 0}
    page = (out / "summary.html").read_text()
    assert "<html" in page
    assert asks_for_nothing_else(page)
    assert "Plotly.newPlot" in page
    assert "paint(dark.matches)" in page


def test_a_cell_is_what_the_library_finds(whole, plan, folder):
    """The same configuration by hand."""
    import toxloc

    cell = next(c for c in plan.cells if c.model == "llama" and c.method == "trne" and c.benchmark == "two")
    lm = toxloc.load_model(str(folder / "llama"))
    pairs = toxloc.load_contrast(str(folder / "pairs.jsonl"))
    neutral = toxloc.load_neutral(limit=24)
    edit = toxloc.TRNE.fit(lm, pairs.limited(400, 0), budget=0.05, neutral=neutral)
    prompts = toxloc.load_prompts(str(folder / "second.txt"))
    with edit.applied(lm):
        found = toxloc.evaluate(
            lm,
            prompts,
            samples=2,
            max_new_tokens=4,
            neutral=neutral.check,
            evaluators=("profanity-check", "toxloc-guard"),
        )
    kept = figures(whole[1], cell)
    assert_same(kept["toxicity"], json.loads(json.dumps({k: t.to_dict() for k, t in found.toxicity.items()})))
    assert kept["fluency"]["perplexity_ratio"] == pytest.approx(found.fluency.perplexity_ratio, rel=1e-4)
    assert kept["fluency"]["kl"] == pytest.approx(found.fluency.kl, rel=1e-2, abs=1e-6)


def test_a_second_start_computes_nothing(whole, plan, monkeypatch):
    _, out = whole
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    monkeypatch.setattr(runner._Here, "start", lambda *_: pytest.fail("a worker was started"))
    assert len(sweep(plan, out).results) == 12
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before


def test_a_sweep_that_was_killed_goes_on(whole, folder, content, tmp_path):
    """SIGKILL in the middle: workers end too, what is finished stays, and the end is the same."""
    content = content | {"models": ["gpt2"]}
    (tmp_path / "grid.json").write_text(json.dumps(content))
    mine, plan = tmp_path / "out", Plan(grid_of(content), folder)
    command = [
        sys.executable,
        "-m",
        "toxloc",
        "sweep",
        str(tmp_path / "grid.json"),
        "--root",
        str(folder),
        "--out",
        str(mine),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(list((mine / "cells").glob("*.json"))) < 2:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # the worker sees that the other end of its pipe is gone
    kept = {path: path.stat().st_mtime_ns for path in (mine / "cells").glob("*.json")}
    assert 2 <= len(kept) < 6
    time.sleep(1)
    assert len(list((mine / "cells").glob("*.json"))) == len(kept)
    told = []
    sweep(plan, mine, on_settled=lambda cell, _: told.append(cell.id))
    assert sorted([*told, *(path.stem for path in kept)]) == sorted(cell.id for cell in plan.cells)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert_same_results(mine, whole[1], plan)


def test_two_workers_find_what_one_finds(whole, plan, tmp_path):
    sweep(plan, tmp_path / "out", jobs=2)
    assert_same_results(tmp_path / "out", whole[1], plan)


def test_two_workers_of_ray_find_what_one_finds(whole, plan, tmp_path):
    pytest.importorskip("ray", reason="needs the ray extra")
    sweep(plan, tmp_path / "out", ray="local")
    assert_same_results(tmp_path / "out", whole[1], plan)


def test_a_cell_that_fails_is_noted_and_the_rest_goes_on(folder, content, tmp_path):
    content = content | {
        "models": ["gpt2"],
        "methods": [{"method": "steering", "settings": {"layer": 7, "budget": 0.05}}, content["methods"][1]],
    }
    plan, out = Plan(grid_of(content), folder), tmp_path / "out"
    summary = sweep(plan, out)
    assert [cell.method for cell, _ in summary.failures] == ["steering", "steering"]
    assert all("7" in error for _, error in summary.failures)
    assert [cell.method for cell, _ in summary.results] == ["trne", "trne"]
    assert "Layer 7" in (out / "summary.html").read_text()
    tried = {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()}
    sweep(plan, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()} == tried
    sweep(plan, out, retry_failed=True)
    again = {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()}
    assert again.keys() == tried.keys()
    assert all(again[path] > tried[path] for path in tried)


def test_a_model_that_cannot_be_loaded_fails_its_own_cells_alone(folder, content, tmp_path):
    there = tmp_path / "models"
    shutil.copytree(folder, there)
    (there / "gpt2" / "model.safetensors").write_bytes(b"not weights")
    summary = sweep(Plan(grid_of(content | {"methods": content["methods"][1:]}), there), tmp_path / "out")
    assert {cell.model for cell, _ in summary.failures} == {"gpt2"}
    assert all("cannot be loaded" in error for _, error in summary.failures)
    assert {cell.model for cell, _ in summary.results} == {"llama"}


class Fragile(runner._Crew):
    """A worker that finishes one cell and dies at the next, every time."""

    size = 1

    def __init__(self, store):
        self.store, self.started = store, []

    def start(self, cells):
        self.started.append([cell.id for cell in cells])
        self.store.finish(cells[0], {})

        class Dead(runner._Worker):
            def ended(self):
                return "signal 9"

        return Dead()

    def __exit__(self, *_):
        pass


def test_the_cell_a_worker_died_at_fails_and_the_next_ones_have_another(plan, tmp_path):
    store = Store(tmp_path / "out")
    cells = plan.cells[:6]
    crew, told = Fragile(store), []
    runner._run(crew, store, cells, lambda cell, _: told.append(cell.id))
    ids = [cell.id for cell in cells]
    assert crew.started == [ids, ids[2:], ids[4:]]
    assert [store.is_done(cell) for cell in cells] == [True, False] * 3
    assert "signal 9" in store.failure(cells[1])["error"]
    assert sorted(told) == sorted(ids)


def test_two_sweeps_do_not_write_to_one_folder(plan, tmp_path):
    with runner._alone(Store(tmp_path / "out")), pytest.raises(ToxlocError, match="Another sweep"):
        sweep(plan, tmp_path / "out")


def test_bad_numbers_and_places(plan, tmp_path):
    with pytest.raises(ToxlocError, match="jobs=0"):
        sweep(plan, tmp_path / "out", jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ToxlocError, match="choose another folder"):
        sweep(plan, tmp_path / "file")


def test_devices_are_dealt_out_in_turn(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert runner._devices(3) == {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [runner._devices(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "4,6")
    assert [runner._devices(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]


def test_peaks_are_of_the_cell(whole, plan):
    """The second model's cells do not carry the first one's peak, since each group has a process of its own."""
    peaks = [Store(whole[1]).result(cell)["peak_memory"]["resident_mb"] for cell in plan.cells]
    assert np.ptp(peaks) < 0.5 * max(peaks)
