import dataclasses

import numpy as np
import pytest

from toxloc import Localization, ToxlocError, plots


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def one_score(values, model="m", score="attribution"):
    values = np.array(values)
    return Localization({score: values}, {score: values[:, None]}, {"model": model}, np.ones((len(values), 1)))


def test_columns_of_the_heatmap_are_shares_of_their_largest_and_show_the_scores(loc):
    heat = loc.heatmap().data[0]
    np.testing.assert_allclose(heat.z, [[0.25, -1.0], [1.0, 0.5]])
    assert [list(row) for row in heat.text] == [["1", "-3"], ["4", "1.5"]]
    assert list(heat.y) == ["layer 0", "layer 1"]
    assert list(heat.x) == ["activation<br>contrast", "attribution"]


def test_the_heatmap_s_hover_gives_intervals_where_they_are_known(loc):
    hover = loc.heatmap().data[0].hovertext
    assert hover[0][1] == ("layer 0, attribution<br>score -3<br>95% interval [-4, -2]<br>z -6.5, adjusted p 0.002"
                           "<br>-100% of the largest")
    assert hover[0][0] == "layer 0, activation contrast<br>score 1<br>25% of the largest"


@pytest.mark.parametrize(("score", "values", "shares"), [
    ("auroc", [0.75, 0.625], [1.0, 0.5]), ("gradient_calibrated", [3.0, 0.0], [1.0, -0.5]),
])
def test_scores_that_say_nothing_elsewhere_than_at_0_are_coloured_from_there(score, values, shares):
    heat = one_score(values, score=score).heatmap().data[0]
    np.testing.assert_allclose(np.array(heat.z)[:, 0], shares)
    assert "50% of the largest distance from" in heat.hovertext[1][0]


def test_depth_has_the_scores_their_interval_and_their_null(loc):
    null, interval, score = plots.toxicity_by_depth(loc).data
    assert list(score.x) == [0, 1]
    assert list(score.y) == [-3.0, 1.5]
    # A band runs along its upper edge and back along its lower one.
    assert (null.name, list(null.x), list(null.y)) == ("shuffled labels, mean ± 2 sd", [0, 1, 1, 0],
                                                      [1.25, 1.75, -2.25, -0.75])
    assert (interval.name, list(interval.y)) == ("95% interval", [-2.0, 2.5, 0.5, -4.0])
    assert score.text[1] == "score 1.5<br>95% interval [0.5, 2.5]<br>z 1.8, adjusted p 0.06"


def test_layers_that_could_be_chance_have_open_markers_and_the_figure_says_so(loc):
    figure = plots.toxicity_by_depth(loc)
    assert list(figure.data[-1].marker.symbol) == ["circle", "circle-open"]
    assert "Filled markers: p &lt; 0.05" in figure.layout.title.text


def test_a_score_without_interval_is_a_line_alone(loc):
    figure = plots.toxicity_by_depth(loc, "activation")
    assert [list(trace.y) for trace in figure.data] == [[1.0, 4.0]]
    assert list(figure.data[0].marker.symbol) == ["circle", "circle"]
    assert "no interval" in figure.layout.title.text


def test_a_score_outside_its_interval_is_explained(loc):
    assert "outside" not in plots.toxicity_by_depth(loc).layout.title.text
    sure = dataclasses.replace(loc.uncertainty["attribution"], high=np.array([-3.5, 2.5]))
    loc = dataclasses.replace(loc, uncertainty={"attribution": sure})
    assert "outside" in plots.toxicity_by_depth(loc).layout.title.text.replace("<br>", " ")


def test_axes_name_the_score_and_its_unit(loc):
    layout = plots.toxicity_by_depth(loc).layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("layer", "attribution (nats per token)")


def test_every_score_has_a_title_and_a_unit():
    from toxloc.localization.scores import SCORES
    from toxloc.plots.style import SCORE_UNITS, score_axis, score_title

    assert set(SCORE_UNITS) == set(SCORES) == set(plots.SCORE_TITLES)
    assert score_title("auroc") == SCORES["auroc"].title
    assert score_title("mine") == score_axis("mine") == "mine"


def test_models_of_different_depth_share_one_axis():
    figure = plots.relative_depth({"a": one_score([1.0, -4.0, 2.0]), "b": one_score([0.0, 1.0, 2.0, 3.0, 6.0])})
    a, b = traces(figure)["a"], traces(figure)["b"]
    assert (list(a.x), list(a.y)) == ([0, 0.5, 1], [0.25, -1.0, 0.5])
    assert list(b.x) == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(b.y, np.array([0, 1, 2, 3, 6]) / 6)
    assert a.line.color != b.line.color
    assert a.text[1] == "layer 1 of 0 to 2<br>score -4"


def test_models_are_called_by_their_own_names_if_no_other_is_given(loc):
    figure = plots.relative_depth([loc, one_score([1.0, 2.0], model="other")])
    assert [trace.name for trace in figure.data if trace.name] == ["m", "other"]
    band = figure.data[0]
    np.testing.assert_allclose(band.y, np.array([-2.0, 2.5, 0.5, -4.0]) / 3)
    assert "Bands: 95% intervals." in figure.layout.title.text


def test_intervals_of_many_models_are_left_out(loc):
    figure = plots.relative_depth([loc] * 4)
    assert len(figure.data) == 4
    assert "Bands" not in figure.layout.title.text


def test_a_model_of_one_layer_and_one_of_zeros_are_no_trouble():
    figure = plots.relative_depth([one_score([2.0]), one_score([0.0, 0.0])])
    assert [list(trace.y) for trace in figure.data] == [[1.0], [0.0, 0.0]]


def test_depth_needs_localizations_with_the_score(loc):
    with pytest.raises(ToxlocError, match="at least one"):
        plots.relative_depth([])
    with pytest.raises(ToxlocError, match="'auroc' was not computed"):
        plots.relative_depth([loc], "auroc")
    with pytest.raises(ToxlocError, match="'auroc' was not computed"):
        plots.toxicity_by_depth(loc, "auroc")


def test_a_long_model_name_is_broken_into_lines_and_never_read_as_html():
    figure = plots.toxicity_by_depth(one_score([1.0], model="organisation/<b>model-of-a-very-long-name-70b"))
    heading = figure.layout.title.text.split("<br><span")[0].split("<br>")
    assert heading == ["Attribution by depth in", "organisation/&lt;b&gt;model-of-a-very-long-", "name-70b"]
