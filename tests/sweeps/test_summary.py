import csv
import json

import numpy as np
import pandas as pd
import pytest

from toxloc.sweeps.grid import Plan, grid_of
from toxloc.sweeps.store import Store
from toxloc.sweeps.summary import Depth, Summary


def test_depth_by_hand():
    """The relative depths of five layers are 0, 1/4, 1/2, 3/4 and 1: two are early, one is middle, and two are late."""
    depth = Depth.of(("m", "c", 0), "attribution", np.array([1.0, -2.0, 3.0, 0.0, 4.0]))
    assert (depth.peak, depth.p, depth.third) == (4, None, "late")
    assert depth.shares == {"early": 1 / 8, "middle": 3 / 8, "late": 4 / 8}


def test_shares_of_a_positive_score_are_counted_from_its_lowest_layer():
    depth = Depth.of(("m", "c", 0), "auroc", np.array([0.75, 0.5, 0.5, 0.5, 0.5]), np.array([0.25, 1, 1, 1, 1]))
    assert depth.p == 0.25
    assert depth.shares == {"early": 1.0, "middle": 0.0, "late": 0.0}


def test_a_score_without_a_positive_layer():
    assert sum(Depth.of(("m", "c", 0), "attribution", -np.ones(3)).shares.values()) == 0


def result(before, after, missed, perplexity=1.0):
    def toxicity(rate):
        return {name: {"rate": rate, "rate_ci": [rate - 0.1, rate + 0.1]} for name in ("a", "b", "any", "all")}

    def agreement(share):
        return {"missed": {"a": {"value": share}, "b": {"value": None}}}

    change = {"relative": after / before - 1, "ci": [-1, 0], "p": 1.0}
    return {
        "localization": "none",
        "baseline": {"toxicity": toxicity(before), "agreement": agreement(0.25)},
        "toxicity": toxicity(after),
        "change": dict.fromkeys(("a", "b", "any", "all"), change),
        "agreement": agreement(missed),
        "fluency": {"perplexity_ratio": perplexity, "kl": 0.0, "top_1": 1.0},
        "seconds": {"fit": 1.0},
        "peak_memory": {"resident_mb": 1, "device_mb": None},
    }


@pytest.fixture
def summary(plan, tmp_path):
    """Summarise twelve cells (three settings on two benchmarks per model): six are finished and one has failed."""
    store = Store(tmp_path / "out")
    rates = [0.3, 0.2, 0.3, 0.05, 0.1, 0.2]  # for each setting, the rates on both benchmarks
    for cell, rate, missed in zip(plan.cells[:6], rates, [0.5, 0.0, 0.0, 1.0, 0.6, 0.1], strict=True):
        store.finish(cell, result(0.4, rate, missed, 1 + rate))
    store.fail(plan.cells[6], "no luck")
    return Summary(plan, store)


def test_ranks_by_hand(summary):
    """Rates .3 .3 .1 on the first benchmark have the ranks 2.5 2.5 1; .2 .05 .2 on the second have 2.5 1 2.5."""
    ranks = {row["treatment"]: row for row in summary.ranks()}
    assert [row["mean_rank"] for row in summary.ranks()] == [1.75, 1.75, 2.5]
    first = ranks["meow2x, budget 0.05, scale 0.5"]
    assert (first["mean_rank"], first["n"]) == (2.5, 2)
    assert first["mean_change"] == pytest.approx(((0.3 + 0.2) / 2 - 0.4) / 0.4)
    assert first["mean_perplexity_ratio"] == pytest.approx(1.25)


def test_a_summary_can_be_written_where_nothing_was_toxic(plan, tmp_path):
    store = Store(tmp_path / "out")
    for cell in plan.cells:
        store.finish(cell, result(0.4, 0.0, None) | {"change": dict.fromkeys(("a", "b", "any", "all"))})
    summary = Summary(plan, store)
    summary.localizations = {}
    summary.write()
    assert {row["mean_change"] for row in summary.ranks()} == {None}
    assert "NaN" not in (tmp_path / "out" / "summary.json").read_text()
    assert '<td class="n">–</td>' in (tmp_path / "out" / "summary.html").read_text()


def test_the_best_setting_of_each_benchmark(summary):
    first, second = summary.best()
    assert (first["benchmark"], first["best"], first["after"], first["tied"]) == ("one", "trne, budget 0.05", 0.1, [])
    assert (second["best"], second["tied"]) == ("meow2x, budget 0.05, scale 0.0", [])
    assert second["before"] == 0.4


def test_underestimation_by_hand(summary):
    """Evaluator a misses something in four of six cells, and at least half in three; b has no defined share.

    The unedited model counts once per benchmark.
    """
    unedited, edited = summary.underestimates()
    assert (unedited["evaluator"], unedited["models"], unedited["runs"]) == ("a", "unedited", 2)
    assert (unedited["misses"], unedited["misses_much"], unedited["median"]) == (1.0, 0.0, 0.25)
    assert (edited["runs"], edited["misses"], edited["misses_much"]) == (6, 4 / 6, 3 / 6)
    assert edited["median"] == pytest.approx(0.3)


def test_the_table_has_a_row_for_every_cell(summary, plan):
    table = summary.table().set_index("id")
    assert list(table["status"]) == ["done"] * 6 + ["failed"] + ["missing"] * 5
    assert table.loc[plan.cells[6].id, "error"] == "no luck"
    assert table.loc[plan.cells[3].id, "rate_any"] == 0.05
    assert table.loc[plan.cells[3].id, "missed_a"] == 1.0
    assert np.isnan(table.loc[plan.cells[7].id, "rate_any"])


BUDGETS = {  # toxic rates on the benchmarks one and two; the higher budget and the fixed strength have the lowest rates
    "trne, budget 0.01": (0.30, 0.20),
    "trne, budget 0.05": (0.10, 0.05),
    "meow2x, budget 0.01": (0.20, 0.25),
    "meow2x, budget 0.05": (0.15, 0.10),
    "steering, strength 9.0": (0.0, 0.0),
}


@pytest.fixture
def priced(folder, content, tmp_path):
    """Summarise two methods at two budgets, and a method with a fixed strength that costs more than any budget."""
    methods = [{"method": method, "settings": {"budget": [0.01, 0.05]}} for method in ("trne", "meow2x")]
    methods.append({"method": "steering", "settings": {"strength": 9.0}})
    plan = Plan(grid_of(content | {"models": ["gpt2"], "methods": methods}), folder)
    store = Store(tmp_path / "priced")
    for cell in plan.cells:
        rate = BUDGETS[cell.treatment][["one", "two"].index(cell.benchmark)]
        store.finish(cell, result(0.4, rate, None, 1 + cell.settings.get("budget", 3.0)))
    return Summary(plan, store)


def test_settings_are_compared_only_within_their_budget(priced):
    best = {(row["budget"], row["benchmark"]): (row["best"], row["after"]) for row in priced.best()}
    assert best == {
        ("perplexity 0.01", "one"): ("meow2x, budget 0.01", 0.20),
        ("perplexity 0.01", "two"): ("trne, budget 0.01", 0.20),
        ("perplexity 0.05", "one"): ("trne, budget 0.05", 0.10),
        ("perplexity 0.05", "two"): ("trne, budget 0.05", 0.05),
        ("none", "one"): ("steering, strength 9.0", 0.0),
        ("none", "two"): ("steering, strength 9.0", 0.0),
    }
    tied = {(row["budget"], row["benchmark"]): row["tied"] for row in priced.best()}
    # Intervals are the rate ± 0.1: 0.3 - 0.1 reaches 0.2; nothing is tied with a setting of another budget.
    assert tied["perplexity 0.01", "one"] == ["trne, budget 0.01"]
    assert tied["perplexity 0.05", "two"] == ["meow2x, budget 0.05"]
    assert tied["none", "one"] == []


def test_settings_are_ranked_within_their_budget(priced):
    ranks = [(row["budget"], row["treatment"], row["mean_rank"], row["n"]) for row in priced.ranks()]
    assert ranks == [
        ("none", "steering, strength 9.0", 1.0, 2),
        ("perplexity 0.01", "trne, budget 0.01", 1.5, 2),
        ("perplexity 0.01", "meow2x, budget 0.01", 1.5, 2),
        ("perplexity 0.05", "trne, budget 0.05", 1.0, 2),
        ("perplexity 0.05", "meow2x, budget 0.05", 2.0, 2),
    ]
    priced.localizations = {}
    priced.write()
    kept = json.loads((priced.store.folder / "summary.json").read_text())
    assert [row["budget"] for row in kept["ranks"]] == [row[0] for row in ranks]
    page = (priced.store.folder / "summary.html").read_text()
    assert page.index("<td>perplexity 0.01</td>") < page.index("<td>perplexity 0.05</td>")


def test_cells_of_older_versions_are_summarised_with_new_cells(plan, tmp_path):
    store = Store(tmp_path / "out")
    old, new = plan.cells[:2]
    store.finish(new, result(0.4, 0.2, None))
    written = json.dumps({**old.to_dict(), **result(0.4, 0.1, None)})
    (store.folder / "cells" / f"{old.id}.json").write_text(written.replace('"all"', '"both"'))
    summary = Summary(plan, store)
    assert summary.judges == ["a", "b", "any", "all"]
    table = summary.table().set_index("id")
    assert list(table.loc[[old.id, new.id], "rate_all"]) == [0.1, 0.2]
    assert not [name for name in table.columns if "both" in name]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-5", "'-5"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\r=1"),
        ("＝1", "'＝1"),
        ("no luck\r=1+1", "no luck\\r=1+1"),
        ('a,"b"\n=1', 'a,"b"\\n=1'),
        ("\x1b[31m", "\\x1b[31m"),
        ("a=b, -1", "a=b, -1"),
    ],
)
def test_no_cell_of_the_csv_file_is_a_formula(summary, plan, text, written):
    summary.localizations = {}
    summary.failures = [(plan.cells[6], text)]
    summary.write()
    path = summary.store.folder / "results.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert len(rows) == len(plan.cells)
    assert rows[plan.cells[6].id]["error"] == written
    assert rows[plan.cells[3].id]["change_any"] == "-0.875"
    table = pd.read_csv(path).set_index("id")
    assert table.loc[plan.cells[6].id, "error"] == written
    assert table.loc[plan.cells[3].id, "change_any"] == -0.875
    exact = pd.read_parquet(summary.store.folder / "results.parquet").set_index("id")
    assert exact.loc[plan.cells[6].id, "error"] == text
