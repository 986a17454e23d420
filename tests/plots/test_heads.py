from dataclasses import dataclass, field

import numpy as np
import pytest

from toxloc import Site, ToxlocError, attention_pattern, plots
from toxloc.support.masking import mask_tokens

from .conftest import StubSite

WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.125, 0.5, 0.375]])


@dataclass(frozen=True)
class Pattern:
    tokens: list[str]
    weights: np.ndarray
    by: str = "attention"
    site: StubSite = field(default_factory=lambda: StubSite(3))
    head: int = 2

    def shown(self, masked=True):
        return mask_tokens(self.tokens) if masked else self.tokens


@pytest.fixture
def pattern():
    return Pattern(["You", " sil", "ly"], WEIGHTS)


def test_rows_are_layers_and_heads_are_in_their_own_order(mixed):
    figure = plots.head_map(mixed, "attribution")
    heat = figure.data[0]
    assert list(heat.y) == ["layer 1", "layer 4"]
    assert [list(row) for row in heat.z] == [[1.0, -7.0, 9.0], [0.5, 3.0, 2.0]]
    assert heat.zmin == -heat.zmax and 8.9 < heat.zmax <= 9
    assert figure.layout.title.text.startswith("Heads by attribution in m<br>")
    assert "which heads have the highest scores?" in figure.layout.title.text.replace("<br>", " ")
    assert heat.colorbar.title.text == "attribution (nats per token)"
    assert figure.layout.yaxis.autorange == "reversed"


def test_a_layer_with_fewer_heads_has_empty_cells(mixed):
    mixed.neuron_scores("attribution", "attention")[1, 2] = np.nan
    heat = plots.head_map(mixed).data[0]
    assert np.isnan(heat.z[1][2]) and 8.9 < heat.zmax <= 9


def test_a_localization_without_attentions_is_refused(lm, pairs):
    import toxloc

    with pytest.raises(ToxlocError, match="Part 'attention' was not localized"):
        plots.head_map(toxloc.localize(lm, pairs.limited(4), draws=0))


def test_rows_are_queries_and_later_sources_are_empty(pattern):
    figure = plots.attention_heatmap(pattern, masked=False)
    heat = figure.data[0]
    np.testing.assert_array_equal(heat.z, np.where(np.tri(3) > 0, WEIGHTS, np.nan))
    assert heat.text[2][1] == "at ly, from sil"
    assert figure.layout.xaxis.title.text == "source token" and figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.title.text.startswith("Layer 3, head 2: what it reads<br>")
    assert "from which earlier tokens" in figure.layout.title.text
    assert heat.colorbar.title.text == "attention weight"
    norm = plots.attention_heatmap(Pattern(["a", "b", "c"], WEIGHTS, "norm")).data[0]
    assert norm.colorbar.title.text == "length of what the head writes"


def test_the_first_token_does_not_set_the_colours(pattern):
    figure = plots.attention_heatmap(pattern)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 0.5)
    assert "beyond the colour scale" in figure.layout.title.text.replace("<br>", " ")
    even = np.tri(3) / np.arange(1, 4)[:, None]
    assert "beyond" not in plots.attention_heatmap(Pattern(["a", "b", "c"], even)).layout.title.text


def test_words_are_masked_by_default(pattern):
    figure = plots.attention_heatmap(pattern)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert list(axis.labelalias.values()) == ["Y··", "s··", "··"]
    everything = figure.update_layout(template=None).to_json()
    assert not any(piece in everything for piece in ("You", " sil", '"ly', "from ly", "at ly"))
    assert "Words are masked" in figure.layout.title.text.replace("<br>", " ")
    assert "masked" not in plots.attention_heatmap(pattern, masked=False).layout.title.text


def test_a_real_pattern_is_drawn(lm):
    pattern = attention_pattern(lm, (Site(3, "attention"), 2), "The sun is out")
    figure = pattern.heatmap()
    np.testing.assert_array_equal(np.nan_to_num(figure.data[0].z), pattern.weights)
    assert pattern.heatmap(masked=False).to_json() == plots.attention_heatmap(pattern, masked=False).to_json()
