import json

import pytest

import toxloc
from toxloc import ToxlocError
from toxloc.sweeps import worker
from toxloc.sweeps.grid import Plan, grid_of
from toxloc.sweeps.store import Store


@pytest.fixture
def small(folder, content):
    """One model; TRNE and a method that asks for a layer that the model has not."""
    methods = [{"method": "steering", "settings": {"layer": 7}}, *content["methods"]]
    return Plan(grid_of(content | {"models": ["gpt2"], "methods": methods, "evaluators": ["profanity-check"]}), folder)


def test_one_pass_over_the_texts_serves_all_cells_and_a_cell_that_fails_stops_no_other(small, tmp_path, monkeypatch):
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
    assert "Layer 7" in store.failure(small.cells[0])["error"]
    # What cells share is kept once: two benchmarks, three fits, one localization.
    count = {
        name: len(list((store.folder / name).iterdir())) for name in ("baselines", "interventions", "localizations")
    }
    assert count == {"baselines": 2, "interventions": 3, "localizations": 1}
    found = store.result(small.cells[-1])
    fitted = toxloc.load_intervention(store.intervention(small.cells[-1]))
    assert found["fit"]["tuned_perplexity_ratio"] == fitted.record["tuned_perplexity_ratio"]
    assert found["n_prompts"] == 6
    assert list(found["toxicity"]) == ["profanity-check", "any", "all"]
    rows = [
        json.loads(line) for line in (store.baseline(small.cells[-1]) / "completions.jsonl").read_text().splitlines()
    ]
    assert found["baseline"]["toxicity"]["any"]["rate"] == pytest.approx(
        sum(row["toxic"]["any"] for row in rows) / len(rows)
    )


def test_a_group_whose_model_cannot_be_loaded_fails_whole(small, folder, tmp_path):
    cells, store = small.cells, Store(tmp_path / "out")
    broken = Plan(small.grid, tmp_path, checked=True)  # a folder without the model
    worker.work(broken, cells[:2], store)
    assert all(store.has_failed(cell) for cell in cells[:2])


def test_what_another_worker_has_kept_meanwhile_is_as_good(tmp_path):
    def save():
        target.mkdir()
        raise ToxlocError("The folder is not empty.")

    def fail():
        raise ToxlocError("The disk is full.")

    target = tmp_path / "kept"
    worker._keep(save, target)
    with pytest.raises(ToxlocError, match="disk is full"):
        worker._keep(fail, tmp_path / "other")
