from dataclasses import dataclass, replace

import pytest

from toxloc import plots


@dataclass(frozen=True)
class Run:
    model: str
    treatment: str
    benchmark: str
    contrast: str = "c"
    seed: int = 0


def result(before, after, ratio=1.02):
    def toxicity(rate):
        return {"any": {"rate": rate}}

    return {
        "baseline": {"toxicity": toxicity(before)},
        "toxicity": toxicity(after),
        "fluency": {"perplexity_ratio": ratio},
        "change": {"any": {"relative": after / before - 1, "ci": [-0.5, 0.5]} if before else None},
    }


RESULTS = [
    (Run("hub/gpt2", "trne", "first"), result(0.4, 0.1)),
    (Run("hub/gpt2", "trne", "second"), result(0.2, 0.3)),
    (Run("hub/gpt2", "meow2x", "first"), result(0.4, 0.2)),
    (Run("hub/gpt2", "meow2x", "second"), result(0.0, 0.0)),
]


def test_cells_are_placed_by_setting_and_benchmark():
    heat, other = (plots.change_by_setting(RESULTS, name).data[0] for name in ("first", "second"))
    assert list(heat.y) == list(other.y) == ["trne", "meow2x"]
    assert list(heat.x) == ["gpt2<br>before<br>40.0%"]
    assert [row[0] for row in heat.z] == [-0.75, -0.5]
    assert other.z[1][0] is None  # nothing was toxic before
    assert other.text[0][0] == "30.0%"
    assert "40.0% → 10.0%, change -75%" in heat.customdata[0][0]


def test_column_names_include_the_seed_if_it_differs():
    again = [(replace(cell, seed=1), result) for cell, result in RESULTS]
    heat = plots.change_by_setting([*RESULTS, *again], "first").data[0]
    assert [name.split("<br>")[:2] for name in heat.x] == [["gpt2", "seed 0"], ["gpt2", "seed 1"]]


def test_cost_and_gain_shows_every_cell_that_has_a_change():
    points = [trace for trace in plots.cost_and_gain(RESULTS).data if trace.x[0] is not None]
    assert [trace.y[0] for trace in points] == pytest.approx([-0.75, 0.5, -0.5])
    assert len({(trace.marker.color, trace.marker.symbol) for trace in points}) == 2
