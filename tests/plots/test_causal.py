import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from tests.plots.conftest import StubSite
from toxloc import plots


@dataclass(frozen=True)
class Removal:
    effect: float
    layers: tuple[int, ...] = ()
    sites: tuple[StubSite, ...] = ()
    perplexity_ratio: float | None = None
    toxic_rate: float | None = None
    toxic_rate_before: float | None = 0.5
    neutral_rise: float = 1.0
    breaks_model: bool = False

    @property
    def toxic_rise(self):
        return self.effect + self.neutral_rise

    @property
    def effect_ci(self):
        return self.effect - 0.25, self.effect + 0.5


@dataclass(frozen=True)
class Curve:
    counts: tuple[int, ...]
    ordered: tuple[Removal, ...]
    controls: tuple[tuple[Removal, ...], ...]
    score_title: str = "attribution"


@dataclass(frozen=True)
class Correlated:
    score: str
    parts: str
    n: int
    spearman: float
    ci: tuple[float, float]

    @property
    def score_title(self):
        return {"attribution": "attribution", "auroc": "best neuron's AUROC"}[self.score]


@dataclass(frozen=True)
class Proof:
    layers: tuple[Removal, ...]
    correlations: tuple[Correlated, ...]


def knocked(effect, *, layers=(), ratio=None, rate=None):
    return Removal(effect, layers, tuple(map(StubSite, layers)), ratio, rate)


@pytest.fixture
def curve():
    """Curve whose counts are not sorted, so that the figure has to sort them."""
    return Curve(
        (64, 16),
        (knocked(4.0, ratio=1.5, rate=0.1), knocked(1.0, ratio=1.25, rate=0.3)),
        (
            (knocked(0.5, ratio=1.2, rate=0.5), knocked(-0.5, ratio=1.0, rate=0.4)),
            (knocked(0.25, ratio=1.0, rate=0.5), knocked(0.75, ratio=1.0, rate=0.5)),
        ),
    )


def without(curve, **fields):
    return dataclasses.replace(curve, ordered=tuple(dataclasses.replace(k, **fields) for k in curve.ordered))


def test_the_curve_shows_effects_with_intervals_and_every_control(curve):
    draws, mean, ordered = plots.removal_curve(curve).data[:3]
    assert (list(ordered.x), list(ordered.y)) == ([16, 64], [1.0, 4.0])
    assert (list(ordered.error_y.array), list(ordered.error_y.arrayminus)) == ([0.5, 0.5], [0.25, 0.25])
    assert (list(draws.x), list(draws.y)) == ([16, 16, 64, 64], [0.25, 0.75, 0.5, -0.5])
    assert (list(mean.x), list(mean.y)) == ([16, 64], [0.5, 0.0])
    assert ordered.text[1].split("<br>") == [
        "effect 4 nats per token",
        "95% interval [3.75, 4.5]",
        "NLL of toxic text +5, of neutral text +1",
        "perplexity +50.00%",
        "toxic completions 10.0%, before 50.0%",
    ]


def test_perplexity_and_toxic_rate_have_panels_if_they_were_measured(curve):
    figure = plots.removal_curve(curve)
    perplexity, rate = figure.data[5], figure.data[8]
    assert (perplexity.yaxis, list(perplexity.y)) == ("y2", [1.25, 1.5])
    assert (rate.yaxis, list(rate.y)) == ("y3", [0.3, 0.1])
    np.testing.assert_allclose(figure.data[7].y, [0.5, 0.45])
    unedited = figure.layout.shapes[0]
    assert (unedited.y0, unedited.y1, unedited.yref, unedited.line.dash) == (0.5, 0.5, "y3", "dash")
    assert "nats per token" in figure.layout.yaxis.title.text
    assert {axis.type for axis in figure.select_xaxes()} == {"log"}
    assert figure.layout.xaxis3.title.text == "neurons removed (log scale)"


def test_perplexity_and_toxic_rate_have_no_panel_if_they_were_not_measured(curve):
    effect_only = plots.removal_curve(without(curve, perplexity_ratio=None, toxic_rate=None))
    assert len(effect_only.data) == 3 and not effect_only.layout.shapes
    assert effect_only.layout.xaxis.title.text == "neurons removed (log scale)"
    rate = plots.removal_curve(without(curve, perplexity_ratio=None))
    assert list(rate.data[5].y) == [0.3, 0.1]


def test_a_curve_without_controls_has_a_single_line(curve):
    figure = plots.removal_curve(dataclasses.replace(curve, controls=((), ())))
    assert [trace.name for trace in figure.data if trace.showlegend] == ["highest attribution"]


def test_only_some_of_many_counts_have_ticks():
    n = 20
    curve = Curve(tuple(range(1, n + 1)), (knocked(1.0),) * n, ((),) * n)
    ticks = plots.removal_curve(curve).layout.xaxis.tickvals
    assert len(ticks) <= 8 and set(ticks) <= set(range(1, n + 1))


@pytest.fixture
def proof():
    return Proof(
        (knocked(2.0, layers=(0,)), knocked(-0.1, layers=(1,))),
        (
            Correlated("attribution", "layers", 2, 0.75, (0.5, 1.0)),
            Correlated("attribution", "neurons", 9, 0.2, (0.0, 0.5)),
            Correlated("auroc", "layers", 2, -0.5, (-1.0, 0.25)),
            Correlated("auroc", "neurons", 9, 0.0, (-0.5, 0.5)),
        ),
    )


def trace_of(figure, name, axis="x"):
    """Return the trace with this name on this axis, without those that only add a name to the legend."""
    return next(t for t in figure.data if t.name == name and (t.xaxis or "x") == axis and t.x != (None,))


def test_layers_have_bars_with_intervals_and_are_pale_if_the_interval_includes_0(proof):
    bars = next(trace for trace in plots.knockout_layers(proof).data if trace.type == "bar")
    assert (list(bars.x), list(bars.y)) == ([0, 1], [2.0, -0.1])
    np.testing.assert_allclose(bars.error_y.array, [0.5, 0.5])
    np.testing.assert_allclose(bars.error_y.arrayminus, [0.25, 0.25])
    assert bars.marker.opacity[0] == 1 > bars.marker.opacity[1]
    assert bars.marker.color[0] != bars.marker.color[1]
    assert "NLL of toxic text +3, of neutral text +1" in bars.hovertext[0]
    assert set(bars.marker.pattern.shape) == {""}


def test_the_rise_on_toxic_and_on_neutral_text_is_shown(proof):
    figure = plots.knockout_layers(proof)
    toxic, neutral = trace_of(figure, "toxic text"), trace_of(figure, "neutral text")
    assert (list(toxic.x), list(toxic.y), list(neutral.y)) == ([0, 1], [3.0, 0.9], [1.0, 1.0])
    assert set(toxic.marker.color) != set(neutral.marker.color)
    bars = next(trace for trace in figure.data if trace.type == "bar")  # the colour of the text that loses more
    assert list(bars.marker.color) == [toxic.marker.color[0], neutral.marker.color[0]]
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["toxic text", "neutral text"]
    assert "breaks" not in figure.layout.title.text + str(figure.layout.annotations)


def test_a_removal_that_breaks_the_model_is_marked_and_does_not_stretch_the_axes(proof):
    broken = Removal(9.0, (0,), (StubSite(0),), neutral_rise=7.0, breaks_model=True)
    figure = plots.knockout_layers(dataclasses.replace(proof, layers=(broken, *proof.layers[1:])))
    toxic = trace_of(figure, "toxic text")
    bars = next(trace for trace in figure.data if trace.type == "bar")
    assert list(toxic.y) == [1.0, 0.9]  # at the end of the axis, which is the largest rise of the other layer
    assert list(toxic.marker.symbol) == ["triangle-up", "circle"]
    assert toxic.marker.color[0] == bars.marker.color[0] != bars.marker.color[1]
    assert list(bars.marker.pattern.shape) == ["/", ""]
    assert list(bars.y) == [9.0, -0.1] and "of neutral text +7" in bars.hovertext[0]
    low, high = figure.layout.yaxis.range
    assert low < 0 and 1.0 < high < 1.2
    low, high = figure.layout.yaxis2.range
    assert -0.5 < low < -0.35 and 0.4 < high < 0.5  # the interval of the other layer is [-0.35, 0.4]
    assert [(a.x, a.text) for a in figure.layout.annotations if "breaks" in a.text] == [(0, "+7, breaks the model")]
    assert "the model breaks" in figure.layout.title.text.replace("<br>", " ")


def test_mlps_and_attentions_have_panels_side_by_side(proof):
    attention = Removal(-0.5, (1,), (StubSite(1, part="attention"),))
    figure = plots.knockout_layers(dataclasses.replace(proof, layers=(*proof.layers, attention)))
    assert [a.text for a in figure.layout.annotations] == ["MLP", "Attention"]
    assert list(trace_of(figure, "toxic text").y) == [3.0, 0.9]
    assert (list(trace_of(figure, "toxic text", "x2").x), list(trace_of(figure, "toxic text", "x2").y)) == ([1], [0.5])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [(bar.xaxis, list(bar.y)) for bar in bars] == [("x3", [2.0, -0.1]), ("x4", [-0.5])]
    assert figure.layout.yaxis2.matches == "y" and figure.layout.yaxis4.matches == "y3"


def test_correlations_have_a_row_per_score_and_a_colour_per_kind_of_part(proof):
    figure = plots.causal_correlations(proof)
    layers, neurons = figure.data
    assert (layers.name, neurons.name) == ("layers (n = 2)", "neurons (n = 9)")
    assert list(layers.x) == [0.75, -0.5] and list(neurons.x) == [0.2, 0.0]
    np.testing.assert_allclose(layers.error_x.array, [0.25, 0.75])
    np.testing.assert_allclose(layers.error_x.arrayminus, [0.25, 0.5])
    assert [round(y) for y in layers.y] == [round(y) for y in neurons.y] == [0, 1]
    assert list(figure.layout.yaxis.ticktext) == ["attribution", "best neuron's<br>AUROC"]
    assert layers.marker.color != neurons.marker.color
    assert layers.text[1] == "best neuron's AUROC, 2 layers<br>ρ -0.50, 95% interval [-1.00, 0.25]"


def test_correlations_of_layers_only_have_a_single_colour(proof):
    layers_only = dataclasses.replace(proof, correlations=proof.correlations[::2])
    assert [trace.name for trace in plots.causal_correlations(layers_only).data] == ["layers (n = 2)"]
