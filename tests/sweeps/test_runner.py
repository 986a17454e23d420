import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from tests.conftest import asks_for_nothing_else
from toxloc import ToxlocError, sweep
from toxloc.sweeps import runner
from toxloc.sweeps.grid import Cell, Plan, grid_of
from toxloc.sweeps.store import Store

from .conftest import small_grid


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Compute the grid once without interruption, with one worker at the same time."""
    plan = Plan(grid_of(small_grid()), folder)
    out = tmp_path_factory.mktemp("sweep") / "out"
    return sweep(plan, out), out


def figures(out, cell):
    """Return the result of a cell without its time and memory."""
    result = Store(out).result(cell)
    return {key: value for key, value in result.items() if key not in ("seconds", "peak_memory")}


def assert_same(left, right):
    """Compare up to rounding, which depends on the texts that an evaluator reads in the same batch."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-6)
    else:
        assert left == right


def assert_same_results(left, right, plan):
    for cell in plan.cells:
        assert figures(left, cell) == figures(right, cell)
        texts = [
            [
                json.loads(line)["completion"]
                for line in (Store(out).baseline(cell) / "completions.jsonl").read_text().splitlines()
            ]
            for out in (left, right)
        ]
        assert texts[0] == texts[1]


def test_every_cell_is_finished_and_in_the_tables(whole, plan):
    summary, out = whole
    assert len(summary.results) == 12
    assert not summary.failures
    table = pd.read_parquet(out / "results.parquet")
    parquet, csv = (frame.dropna(axis=1, how="all") for frame in (table, pd.read_csv(out / "results.csv")))
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
    assert list(table["id"]) == [cell.id for cell in plan.cells]
    assert (table["status"] == "done").all()
    assert (table["resident_mb"] > 100).all()
    assert json.loads((out / "summary.json").read_text())["cells"] == {"all": 12, "done": 12, "failed": 0}
    page = (out / "summary.html").read_text()
    assert "<html" in page
    assert asks_for_nothing_else(page)
    assert "Plotly.newPlot" in page
    assert "paint(dark.matches)" in page


def test_a_cell_has_the_figures_of_separate_calls(whole, plan, folder):
    """Compute the configuration of one cell with separate calls of `fit` and `evaluate`."""
    import toxloc

    cell = next(c for c in plan.cells if c.model == "llama" and c.method == "trne" and c.benchmark == "two")
    lm = toxloc.load_model(str(folder / "llama"))
    pairs = toxloc.load_contrast(str(folder / "pairs.jsonl"))
    neutral = toxloc.load_neutral(limit=24)
    edit = toxloc.TRNE.fit(lm, pairs.limited(400, 0), budget=0.05, neutral=neutral)
    prompts = toxloc.load_prompts(str(folder / "second.txt"))
    with edit.applied(lm):
        after = toxloc.evaluate(
            lm,
            prompts,
            samples=2,
            max_new_tokens=4,
            neutral=neutral.check,
            evaluators=("profanity-check", "toxloc-guard"),
        )
    kept = figures(whole[1], cell)
    assert_same(kept["toxicity"], json.loads(json.dumps({k: t.to_dict() for k, t in after.toxicity.items()})))
    assert kept["fluency"]["perplexity_ratio"] == pytest.approx(after.fluency.perplexity_ratio, rel=1e-4)
    assert kept["fluency"]["kl"] == pytest.approx(after.fluency.kl, rel=1e-2, abs=1e-6)


def test_a_second_start_computes_nothing(whole, plan, monkeypatch):
    _, out = whole
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    assert len(sweep(plan, out).results) == 12
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before


def test_a_killed_sweep_can_be_continued(whole, folder, content, tmp_path):
    """After SIGKILL, the workers end too, finished cells are kept, and a second call computes the others."""
    content = content | {"models": ["gpt2"]}
    (tmp_path / "grid.json").write_text(json.dumps(content))
    out, plan = tmp_path / "out", Plan(grid_of(content), folder)
    command = [
        sys.executable,
        "-m",
        "toxloc",
        "sweep",
        str(tmp_path / "grid.json"),
        "--root",
        str(folder),
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(list((out / "cells").glob("*.json"))) < 2:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # the worker notices that the pipe to its standard input is closed
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert 2 <= len(kept) < 6
    time.sleep(1)
    assert len(list((out / "cells").glob("*.json"))) == len(kept)
    settled = []
    sweep(plan, out, on_settled=lambda cell, _: settled.append(cell.id))
    assert sorted([*settled, *(path.stem for path in kept)]) == sorted(cell.id for cell in plan.cells)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert_same_results(out, whole[1], plan)


@pytest.mark.slow
def test_two_workers_give_the_same_results(whole, plan, tmp_path):
    sweep(plan, tmp_path / "out", jobs=2)
    assert_same_results(tmp_path / "out", whole[1], plan)


@pytest.mark.slow
def test_workers_on_ray_give_the_same_results(whole, plan, tmp_path):
    pytest.importorskip("ray", reason="needs the ray extra")
    sweep(plan, tmp_path / "out", ray="local")
    assert_same_results(tmp_path / "out", whole[1], plan)


def test_a_failed_cell_is_recorded_and_the_others_are_computed(folder, content, tmp_path):
    content = content | {
        "models": ["gpt2"],
        "methods": [{"method": "steering", "settings": {"layer": 7, "budget": 0.05}}, content["methods"][1]],
    }
    plan, out = Plan(grid_of(content), folder), tmp_path / "out"
    summary = sweep(plan, out)
    assert [cell.method for cell, _ in summary.failures] == ["steering", "steering"]
    assert all("7" in error for _, error in summary.failures)
    assert [cell.method for cell, _ in summary.results] == ["trne", "trne"]
    assert "layer 7" in (out / "summary.html").read_text()
    tried = {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()}
    sweep(plan, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()} == tried
    sweep(plan, out, retry_failed=True)
    again = {path: path.stat().st_mtime_ns for path in (out / "failed").iterdir()}
    assert again.keys() == tried.keys()
    assert all(again[path] > tried[path] for path in tried)


def test_a_model_that_cannot_be_loaded_fails_only_its_cells(folder, content, tmp_path):
    there = tmp_path / "models"
    shutil.copytree(folder, there)
    (there / "gpt2" / "model.safetensors").write_bytes(b"not weights")
    summary = sweep(Plan(grid_of(content | {"methods": content["methods"][1:]}), there), tmp_path / "out")
    assert {cell.model for cell, _ in summary.failures} == {"gpt2"}
    assert all("model.safetensors is damaged" in error for _, error in summary.failures)
    assert {cell.model for cell, _ in summary.results} == {"llama"}


class FakeWorkers:
    """Replaces `subprocess.Popen`: each worker records a failure of its first `n_settled` cells, then exits.

    All workers keep running until `jobs` workers have been started.
    """

    def __init__(self, n_settled, exit_code, jobs=1):
        self.n_settled, self.exit_code, self.jobs = n_settled, exit_code, jobs
        self.cells, self.environments, self.threads = [], [], []

    def __call__(self, command, *, env, **_):
        task = json.loads(Path(command[-1]).read_text())
        cells = [Cell(**cell) for cell in task["cells"]]
        self.cells.append([cell.id for cell in cells])
        self.environments.append(env)
        self.threads.append(task["threads"])
        for cell in cells[: self.n_settled]:
            Store(task["folder"]).fail(cell, "a failure of the fake worker")
        return SimpleNamespace(
            poll=lambda: self.exit_code if len(self.cells) >= self.jobs else None,
            terminate=lambda: None,
            wait=lambda: self.exit_code,
            stdin=None,
        )


def test_the_cell_at_which_a_worker_dies_fails_and_a_new_worker_takes_the_others(plan, tmp_path, monkeypatch):
    workers, settled = FakeWorkers(n_settled=1, exit_code=-9), []
    monkeypatch.setattr(subprocess, "Popen", workers)
    monkeypatch.setattr(runner, "WAIT", 0.01)
    summary = sweep(plan, tmp_path / "out", on_settled=lambda cell, _: settled.append(cell.id))
    ids = [cell.id for cell in plan.cells]
    assert workers.cells == [ids[:6], ids[2:6], ids[4:6], ids[6:], ids[8:], ids[10:]]
    assert ["signal 9" in error for _, error in summary.failures] == [False, True] * 6
    assert sorted(settled) == sorted(ids)


def test_two_sweeps_do_not_write_to_one_folder(plan, tmp_path):
    out = Store(tmp_path / "out").folder
    with FileLock(out / ".lock"), pytest.raises(ToxlocError, match="Another sweep"):
        sweep(plan, out)


def test_bad_numbers_and_places(plan, tmp_path):
    with pytest.raises(ToxlocError, match="jobs=0"):
        sweep(plan, tmp_path / "out", jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ToxlocError, match="choose another folder"):
        sweep(plan, tmp_path / "file")


@pytest.mark.parametrize(
    ("count", "visible", "assigned"),
    [(1, None, [None, None, None]), (2, None, ["0", "1", "0"]), (2, "4,6", ["4", "6", "4"])],
)
def test_workers_get_the_cuda_devices_in_turn(folder, content, tmp_path, monkeypatch, count, visible, assigned):
    plan = Plan(grid_of(content | {"models": ["gpt2"], "seeds": [0, 1, 2], "methods": content["methods"][1:]}), folder)
    workers = FakeWorkers(n_settled=2, exit_code=0, jobs=3)
    monkeypatch.setattr(subprocess, "Popen", workers)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sweep(plan, tmp_path / "out", jobs=3)
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in workers.environments] == assigned


def test_the_peak_memory_is_measured_for_each_cell(whole, plan):
    """Peaks of the second model do not include the peak of the first, because each group has a separate process."""
    peaks = [Store(whole[1]).result(cell)["peak_memory"]["resident_mb"] for cell in plan.cells]
    assert np.ptp(peaks) < 0.5 * max(peaks)


@pytest.mark.parametrize(
    ("chosen", "jobs", "threads"), [("3", 1, 3), (None, 1, 8), ("", 2, 4), ("0", 2, 4), ("x", 2, 4)]
)
def test_workers_use_the_threads_of_the_environment_or_share_the_processors(
    folder, content, tmp_path, monkeypatch, chosen, jobs, threads
):
    del content["resources"]
    workers = FakeWorkers(n_settled=12, exit_code=0, jobs=1)
    monkeypatch.setattr(subprocess, "Popen", workers)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    sweep(Plan(grid_of(content), folder), tmp_path / "out", jobs=jobs)
    assert set(workers.threads) == {threads}
