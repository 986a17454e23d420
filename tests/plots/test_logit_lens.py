from dataclasses import dataclass, field

import numpy as np
import pytest

from toxloc import ToxlocError, plots
from toxloc.plots.style import OKABE_ITO

from .conftest import Bands


def bands(values, p):
    zeros = np.zeros(len(values))
    return Bands(values - 1, values + 1, zeros, zeros + 1, values, np.array(p))


@dataclass(frozen=True)
class Lens:
    difference: np.ndarray
    model: str = "m"
    baseline: str = "neutral"
    uncertainty: Bands | None = None
    step_uncertainty: Bands | None = None
    step: np.ndarray = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "step", np.diff(self.difference))


def lens(values, p=None, step_p=None, **about):
    values = np.array(values)
    known = None if p is None else bands(values, p)
    return Lens(values, uncertainty=known, step_uncertainty=step_p and bands(np.diff(values), step_p), **about)


@pytest.fixture
def tested():
    return lens([-1.0, 0.5, 0.25, 2.0, 4.0], [0.2, 0.04, 0.06, 0.001, 0.01], [0.9, 0.5, 0.01, 0.04])


def heading(figure):
    return figure.layout.title.text.replace("<br>", " ")


def test_a_model_has_a_band_a_line_and_thick_segments_over_significant_blocks(tested):
    band, steps, line = plots.logit_lens([tested]).data
    assert list(line.x) == [0, 0.25, 0.5, 0.75, 1]
    assert list(line.y) == [-1.0, 0.5, 0.25, 2.0, 4.0]
    # A band runs along its upper edge and back along its lower edge.
    assert list(band.x) == [0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]
    assert list(band.y) == [0.0, 1.5, 1.25, 3.0, 5.0, 3.0, 1.0, -0.75, -0.5, -2.0]
    np.testing.assert_array_equal(steps.x, [0.5, 0.75, np.nan, 0.75, 1, np.nan])
    np.testing.assert_array_equal(steps.y, [0.25, 2.0, np.nan, 2.0, 4.0, np.nan])
    assert steps.line.width > 2 * (line.line.width or 2)


def test_markers_are_filled_where_the_adjusted_p_is_below_005(tested):
    line = plots.logit_lens([tested]).data[-1]
    assert list(line.marker.symbol) == ["circle-open", "circle", "circle-open", "circle", "circle"]


def test_the_hover_text_has_the_difference_and_what_the_block_adds(tested):
    text = plots.logit_lens([tested]).data[-1].text
    assert text[0] == "embedding<br>difference -1 nats<br>95% interval [-2, 0]<br>z -1.0, adjusted p 0.2"
    assert text[3] == (
        "depth 3 of 4<br>difference 2 nats<br>95% interval [1, 3]<br>z 2.0, adjusted p 0.001<br>"
        "block 2 adds 1.75, adjusted p 0.01"
    )
    assert text[4].startswith("output<br>")


def test_without_draws_there_are_lines_only():
    figure = plots.logit_lens([lens([0.0, 1.0])])
    assert len(figure.data) == 1
    assert figure.data[0].marker.symbol == "circle"
    assert figure.data[0].text[1] == "output<br>difference 1 nats<br>block 0 adds 1"
    assert "Bands" not in heading(figure)


def test_models_of_different_depth_share_one_axis(tested):
    figure = plots.logit_lens({"a": tested, "<b>": lens([1.0, 2.0, 3.0])})
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["a", "&lt;b&gt;"]
    assert list(lines[1].x) == [0, 0.5, 1]
    assert [line.line.color for line in lines] == list(OKABE_ITO[:2])
    assert len({trace.legendgroup for trace in figure.data}) == 2
    assert [line.name for line in plots.logit_lens([tested, lens([1.0, 2.0], model="n")]).data if line.name] == [
        "m",
        "n",
    ]


def test_the_note_says_which_question_the_figure_answers(tested):
    assert "compared with neutral text?" in heading(plots.logit_lens([tested]))
    assert "likelier than the neutral word?" in heading(plots.logit_lens([lens([0.0, 1.0], baseline="none")]))
    assert "other pairs' prefixes?" in heading(plots.logit_lens([lens([0.0, 1.0], baseline="other_prefixes")]))
    layout = plots.logit_lens([tested]).layout
    assert layout.yaxis.title.text.replace("<br>", " ") == "difference of log-probabilities (nats)"
    assert layout.xaxis.title.text == "relative depth (0: embedding, 1: output)"
    zero = next(shape for shape in layout.shapes if shape.y0 == shape.y1 == 0)
    assert (zero.x0, zero.x1) == (0, 1)


def test_results_of_several_baselines_or_none_are_refused(tested):
    with pytest.raises(ToxlocError, match="at least one"):
        plots.logit_lens([])
    with pytest.raises(ToxlocError, match="neutral and none"):
        plots.logit_lens([tested, lens([0.0, 1.0], baseline="none")])
