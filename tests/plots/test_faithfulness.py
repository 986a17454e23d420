from dataclasses import dataclass

import numpy as np
import pytest

from toxloc import plots


@dataclass(frozen=True)
class Faithful:
    score: str
    order: str
    faithfulness: np.ndarray
    low: np.ndarray
    high: np.ndarray
    controls: np.ndarray

    @property
    def score_title(self):
        return {"attribution": "attribution", "auroc": "best neuron's AUROC"}[self.score]


@dataclass(frozen=True)
class Faithfulness:
    curves: tuple[Faithful, ...]
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    counts: tuple[int, ...] = (1, 12, 128)
    n_pairs: int = 9


def faithful(score, order, *f):
    f = np.array(f)
    return Faithful(score, order, f, f - 0.25, f + 0.5, np.stack([f / 2, f / 4]))


@pytest.fixture
def faithfulness():
    return Faithfulness(
        (
            faithful("attribution", "kept", 0.25, 0.5, 1.0),
            faithful("attribution", "kept_absolute", 9.0, 9.0, 9.0),
            faithful("attribution", "removed", 0.75, 0.125, 0.0),
            faithful("auroc", "kept", 0.0, 0.25, 1.0),
            faithful("auroc", "removed", 1.0, 0.5, 0.0),
        )
    )


def test_faithfulness_has_a_panel_for_kept_and_one_for_removed_units(faithfulness):
    figure = plots.faithfulness(faithfulness)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [(line.name, line.yaxis, list(line.y)) for line in lines] == [
        ("attribution", "y", [0.25, 0.5, 1.0]),
        ("best neuron's AUROC", "y", [0.0, 0.25, 1.0]),
        ("attribution", "y2", [0.75, 0.125, 0.0]),
        ("best neuron's AUROC", "y2", [1.0, 0.5, 0.0]),
    ]
    assert lines[0].line.color == lines[2].line.color != lines[1].line.color
    assert all(list(line.x) == [0.01, 0.1, 1.0] for line in lines)
    assert lines[2].text[1] == "attribution: 12 units (10.0%) removed<br>faithfulness 0.12, 95% interval [-0.12, 0.62]"
    assert {axis.type for axis in figure.select_xaxes()} == {"log"}
    assert list(figure.layout.xaxis.ticktext) == ["1", "10", "100"]
    assert "9 pairs" in figure.layout.title.text.replace("<br>", " ")
    assert [axis.title.text for axis in figure.select_yaxes()] == [
        "faithfulness if<br>only these are kept",
        "faithfulness if<br>these are removed",
    ]


def test_faithfulness_has_bands_and_grey_controls(faithfulness):
    figure = plots.faithfulness(faithfulness)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4
    assert list(bands[0].y) == [0.75, 1.0, 1.5, 0.75, 0.25, 0.0]
    controls = [trace for trace in figure.data if trace.name == "random units"]
    assert [list(trace.y) for trace in controls[:2]] == [[0.125, 0.25, 0.5], [0.0625, 0.125, 0.25]]
    assert [trace.yaxis for trace in controls] == ["y"] * 4 + ["y2"] * 4
    assert [trace.showlegend for trace in controls] == [True] + [False] * 7
