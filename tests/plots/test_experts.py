"""The figure of a mixture of experts."""

import numpy as np
import pytest

from toxloc import ToxlocError, plots
from toxloc.localization.result import Localization, PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site

SITES = tuple(Site(layer, "expert", expert) for layer in (1, 3) for expert in range(3))
VALUES = np.array([0.1, -0.4, 0.0, 0.2, 0.05, 0.3])


def localized(p=None):
    zeros = np.zeros(6)
    known = {} if p is None else {"routing": Uncertainty(*([zeros] * 6), np.array(p))}
    part = PartScores(SITES, {"routing": VALUES}, {"routing": np.zeros((6, 2))}, np.ones((6, 2)), known)
    return Localization({"expert": part}, {"model": "m"})


def test_a_cell_is_the_score_of_a_layers_expert():
    figure = plots.expert_map(localized([1.0] * 6), "routing")
    cells = figure.data[0]
    np.testing.assert_array_equal(np.array(cells.z, dtype=float), VALUES.reshape(2, 3))
    assert list(cells.y) == ["layer 1", "layer 3"] and list(cells.x) == ["0", "1", "2"]
    assert cells.zmax == -cells.zmin == 0.4
    assert "layer 3, expert 2" in cells.hovertext[1][2] and "0.3" in cells.hovertext[1][2]


def test_experts_are_marked_below_five_percent_and_a_figure_without_any_says_that_chance_explains_it():
    marked = plots.expert_map(localized([1.0, 0.04, 1.0, 1.0, 1.0, 0.06]), "routing")
    assert [list(row) for row in marked.data[0].text] == [["", "•", ""], ["", "", ""]]
    assert "A dot marks" in marked.layout.title.text.replace("<br>", " ")
    unmarked = plots.expert_map(localized([1.0] * 6), "routing")
    assert "chance explains" in unmarked.layout.title.text.replace("<br>", " ")


def test_a_localization_without_experts_is_an_error():
    part = PartScores((Site(0),), {"routing": np.zeros(1)}, {"routing": np.zeros((1, 2))}, np.ones((1, 2)))
    with pytest.raises(ToxlocError, match=r"parts=\('expert',\)"):
        plots.expert_map(Localization({"mlp": part}, {"model": "m"}), "routing")


def test_experts_are_spread_between_their_layer_and_the_next():
    depth = plots.toxicity_by_depth(localized([1.0] * 6), "routing")
    np.testing.assert_allclose(depth.data[-1].x, [1, 4 / 3, 5 / 3, 3, 10 / 3, 11 / 3])
    assert depth.data[-1].text[4].startswith("layer 3, expert 1")
