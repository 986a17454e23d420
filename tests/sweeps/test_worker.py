import json

import pytest

import toxloc
from toxloc import Evaluation, ToxlocError
from toxloc.sweeps import worker
from toxloc.sweeps.grid import Plan, grid_of
from toxloc.sweeps.store import Store


@pytest.fixture
def small(folder, content):
    """Plan one model with two methods, and with a third method whose layer the model does not have."""
    methods = [{"method": "steering", "settings": {"layer": 7}}, *content["methods"]]
    return Plan(grid_of(content | {"models": ["gpt2"], "methods": methods, "evaluators": ["profanity-check"]}), folder)


def test_one_pass_over_the_texts_serves_all_cells_even_if_a_cell_fails(small, tmp_path, monkeypatch):
    real, calls = toxloc.localization.statistics.collect_contrast, []

    def counted(*args, **options):
        calls.append(options)
        return real(*args, **options)

    for module in ("interventions.evidence", "localization.localize", "localization.statistics"):
        monkeypatch.setattr(f"toxloc.{module}.collect_contrast", counted)
    store = Store(tmp_path / "out")
    worker.work(small, small.cells, store)
    assert len(calls) == 1
    assert [(cell.method, store.has_failed(cell)) for cell in small.cells] == [
        ("steering", True),
        ("steering", True),
        *[("meow2x", False)] * 4,
        ("trne", False),
        ("trne", False),
    ]
    assert "layer 7" in store.failure(small.cells[0])["error"]
    # Results that cells share are saved once: two baselines, three fits, one localization.
    count = {
        name: len(list((store.folder / name).iterdir())) for name in ("baselines", "interventions", "localizations")
    }
    assert count == {"baselines": 2, "interventions": 3, "localizations": 1}
    result = store.result(small.cells[-1])
    fitted = toxloc.load_intervention(store.intervention(small.cells[-1]))
    assert result["fit"]["tuned_perplexity_ratio"] == fitted.record["tuned_perplexity_ratio"]
    assert result["n_prompts"] == 6
    assert list(result["toxicity"]) == ["profanity-check", "any", "all"]
    rows = [
        json.loads(line) for line in (store.baseline(small.cells[-1]) / "completions.jsonl").read_text().splitlines()
    ]
    assert result["baseline"]["toxicity"]["any"]["rate"] == pytest.approx(
        sum(row["toxic"]["any"] for row in rows) / len(rows)
    )


def test_a_group_whose_model_cannot_be_loaded_fails_whole(small, folder, tmp_path):
    cells, store = small.cells, Store(tmp_path / "out")
    broken = Plan(small.grid, tmp_path, checked=True)  # a folder without the model
    worker.work(broken, cells[:2], store)
    assert all(store.has_failed(cell) for cell in cells[:2])


def test_a_baseline_that_another_worker_saves_meanwhile_is_used(small, tmp_path, monkeypatch):
    store, cell, evaluate = Store(tmp_path / "out"), small.cells[-1], worker.evaluate

    def evaluate_and_save(*arguments, **options):
        evaluation = evaluate(*arguments, **options)
        if not store.baseline(cell).exists():
            evaluation.save(store.baseline(cell))  # by the other worker
        return evaluation

    monkeypatch.setattr(worker, "evaluate", evaluate_and_save)
    worker.work(small, [cell], store)
    assert store.is_done(cell)


def test_the_result_of_a_cell_does_not_depend_on_the_cells_before(folder, content, tmp_path):
    """In a sweep that was killed, a new worker computes the rest; every figure must be the same to the last bit."""
    plan = Plan(grid_of(content | {"models": ["gpt2"], "methods": content["methods"][:1]}), folder)
    whole, continued = Store(tmp_path / "whole"), Store(tmp_path / "continued")
    worker.work(plan, plan.cells, whole)
    for cell in plan.cells:
        worker.work(plan, [cell], continued)
    for cell in plan.cells:
        results = [store.result(cell) | {"seconds": None, "peak_memory": None} for store in (whole, continued)]
        assert results[0] == results[1]


def test_a_baseline_that_cannot_be_saved_fails_its_cell(small, tmp_path, monkeypatch):
    def fail(evaluation, target):
        raise ToxlocError("The disk is full.")

    monkeypatch.setattr(Evaluation, "save", fail)
    store, cell = Store(tmp_path / "out"), small.cells[-1]
    worker.work(small, [cell], store)
    assert store.failure(cell)["error"] == "The disk is full."
