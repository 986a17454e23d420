from dataclasses import dataclass

import numpy as np
import pytest

from toxloc import ToxlocError, plots, token_view
from toxloc.support.masking import mask

TOKENS = ["<s>", "You", " sil", "ly", " goose", "\n"]


@dataclass(frozen=True)
class View:
    tokens: list[str]
    attribution: np.ndarray
    activation: np.ndarray | None = None
    layers: tuple[int, ...] = ()

    def shown(self, masked=True):
        return [mask(token) for token in self.tokens] if masked else self.tokens


@pytest.fixture
def view():
    attribution = np.arange(12.0).reshape(2, 6) - 5
    attribution[:, 0] = 40.0
    return View(TOKENS, attribution, attribution / 2)


def labels(figure):
    alias = figure.layout.xaxis.labelalias
    return [alias[position] for position in figure.data[0].x]


def test_cells_are_the_values_of_the_view_in_their_units(view):
    heat, toxic = plots.token_heatmap(view).data[0], plots.token_heatmap(view, "activation").data[0]
    np.testing.assert_array_equal(heat.z, view.attribution)
    np.testing.assert_array_equal(toxic.z, view.activation)
    assert (heat.colorbar.title.text, toxic.colorbar.title.text) == ("attribution (nats)", "activation (sd)")
    assert list(heat.y) == ["layer 0", "layer 1"]
    assert "nats" in heat.hovertemplate and "sd" in toxic.hovertemplate


def test_rows_are_named_by_their_layers():
    figure = plots.token_heatmap(View(["a", " b"], np.ones((2, 2)), layers=(1, 3)))
    assert list(figure.data[0].y) == ["layer 1", "layer 3"]


def test_colours_are_centred_and_ignore_the_first_position(view):
    figure = plots.token_heatmap(view)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-6, 6)
    assert "first position" in figure.layout.title.text.replace("<br>", " ")
    view.attribution[:, 0] = 0
    assert "first position" not in plots.token_heatmap(view).layout.title.text.replace("<br>", " ")


def test_words_are_masked_by_default(view):
    figure = plots.token_heatmap(view)
    assert labels(figure) == ["&lt;s&gt;", "Y··", "s··", "l·", "g····", "⏎"]
    assert figure.data[0].text[1][4] == "position 4: g····"
    everything = figure.update_layout(template=None).to_json()
    assert not any(piece in everything for piece in ("You", "sil", '"ly', "goose"))
    assert labels(plots.token_heatmap(view, masked=False)) == ["&lt;s&gt;", "You", "sil", "ly", "goose", "⏎"]


def test_a_token_that_occurs_twice_has_two_columns():
    figure = plots.token_heatmap(View(["a", " a"], np.ones((1, 2))))
    assert list(figure.data[0].x) == ["0", "1"]
    assert labels(figure) == ["a", "a"]


def test_an_unknown_or_missing_kind_is_refused(view):
    with pytest.raises(ToxlocError, match="Unknown kind 'gradient'"):
        plots.token_heatmap(view, "gradient")
    with pytest.raises(ToxlocError, match="no activation"):
        plots.token_heatmap(View(["a", " b"], np.ones((1, 2))), "activation")


def test_a_real_view_is_drawn_with_its_words_masked_as_a_whole(lm):
    view = token_view(lm, "The sun is out")
    figure = plots.token_heatmap(view)
    np.testing.assert_array_equal(figure.data[0].z, view.attribution)
    assert "".join(label.strip() for label in labels(figure)).endswith("T··s··i·o··")
    assert view.heatmap(masked=False).to_json() == plots.token_heatmap(view, masked=False).to_json()
