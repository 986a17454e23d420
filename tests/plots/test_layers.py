import dataclasses

import numpy as np
import pytest

from toxloc import ToxlocError, localize, plots
from toxloc.plots.layers import faded

from .conftest import Located, Scores


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def one_score(values, model="m", score="attribution"):
    values = np.array(values)
    return Located({"mlp": Scores({score: values}, {score: values[:, None]})}, {"model": model})


def heading(figure):
    return figure.layout.title.text.replace("<br>", " ")


def test_heatmap_columns_are_scaled_by_their_largest_absolute_value_and_show_the_scores(loc):
    figure = plots.layer_heatmap(loc)
    heat = figure.data[0]
    pale = 0.1 + 0.5 * 0.94  # of the attribution of layer 1, whose p-value is 0.06
    np.testing.assert_allclose(heat.z, [[0.25, -1.0], [1.0, 0.5 * pale]])
    assert [list(row) for row in heat.text] == [["1", "<b>-3</b>"], ["4", "1.5"]]
    assert list(heat.y) == ["layer 0", "layer 1"]
    assert list(heat.x) == ["activation<br>contrast", "attribution"]
    assert heading(figure).startswith("Toxicity by depth in m ")
    assert "Without p-values, in full colour: activation contrast." in heading(figure)


def test_colours_fade_with_the_p_value_and_never_without_one(loc, uncertainty):
    shares = [faded(p) for p in (0.0, 0.049, 0.05, 0.3, 1.0)]
    assert shares[:2] == [1, 1] and shares[2] < 0.6
    assert shares[2:] == sorted(shares[2:], reverse=True) and shares[-1] > 0
    part = dataclasses.replace(loc.by_part["mlp"], uncertainties={})
    figure = plots.layer_heatmap(Located({"mlp": part}))
    np.testing.assert_allclose(figure.data[0].z, [[0.25, -1.0], [1.0, 0.5]])
    assert "No p-values were computed" in heading(figure)


def test_mlps_and_attentions_are_side_by_side_and_share_layers_columns_and_colours(mixed):
    figure = plots.layer_heatmap(mixed)
    mlp, attention = figure.data
    assert list(mlp.y) == list(attention.y) == ["layer 0", "layer 1", "layer 4"]
    assert list(mlp.x) == list(attention.x)
    assert mlp.coloraxis == attention.coloraxis == "coloraxis"
    assert figure.layout.yaxis2.matches == "y" and figure.layout.yaxis.autorange == "reversed"
    assert [title.text for title in figure.layout.annotations] == ["MLP", "Attention"]
    # The largest values of both parts are 8 and 5.5; layer 1 of the MLPs and layer 4 of the attentions are faded.
    pale = 0.1 + 0.5 * 0.94
    np.testing.assert_allclose(mlp.z, [[1 / 8, -3 / 5.5], [4 / 8, 1.5 / 5.5 * pale], [np.nan, np.nan]])
    np.testing.assert_allclose(attention.z, [[np.nan, np.nan], [2 / 8, 3 / 5.5], [1.0, pale]])
    assert attention.hovertext[2][1].startswith("layer 4, attention, attribution<br>score 5.5<br>95% interval")
    assert attention.hovertext[2][1].endswith("100% of the largest absolute value")


def test_the_hover_text_of_the_heatmap_has_intervals_where_they_are_known(loc):
    hover = plots.layer_heatmap(loc).data[0].hovertext
    assert hover[0][1] == (
        "layer 0, attribution<br>score -3<br>95% interval [-4, -2]<br>z -6.5, adjusted p 0.002<br>"
        "-100% of the largest absolute value"
    )
    assert hover[0][0] == "layer 0, activation contrast<br>score 1<br>25% of the largest absolute value"


@pytest.mark.parametrize(
    ("score", "values", "shares", "centre"),
    [("auroc", [0.75, 0.625], [1.0, 0.5], "0.5"), ("gradient_calibrated", [3.0, 0.0], [1.0, -0.5], "1")],
)
def test_colours_are_centred_on_the_value_that_carries_no_information(score, values, shares, centre):
    heat = plots.layer_heatmap(one_score(values, score=score)).data[0]
    np.testing.assert_allclose(np.array(heat.z)[:, 0], shares)
    assert heat.hovertext[1][0].endswith(f"50% of the largest distance from {centre}")


def test_toxicity_by_depth_draws_scores_intervals_and_null_distribution(loc):
    null, interval, score = plots.toxicity_by_depth(loc).data
    assert list(score.x) == [0, 1]
    assert list(score.y) == [-3.0, 1.5]
    # A band runs along its upper edge and back along its lower edge.
    assert (null.name, list(null.x), list(null.y)) == (
        "shuffled labels, mean ± 2 sd",
        [0, 1, 1, 0],
        [1.25, 1.75, -2.25, -0.75],
    )
    assert (interval.name, list(interval.y)) == ("95% interval", [-2.0, 2.5, 0.5, -4.0])
    assert score.text[1] == "layer 1<br>score 1.5<br>95% interval [0.5, 2.5]<br>z 1.8, adjusted p 0.06"


def test_layers_without_a_significant_score_have_open_markers(loc):
    figure = plots.toxicity_by_depth(loc)
    assert list(figure.data[-1].marker.symbol) == ["circle", "circle-open"]
    assert "Filled markers: p &lt; 0.05" in heading(figure)


def test_a_score_without_uncertainty_is_drawn_as_a_line_only(loc):
    figure = plots.toxicity_by_depth(loc, "activation")
    assert [list(trace.y) for trace in figure.data] == [[1.0, 4.0]]
    assert list(figure.data[0].marker.symbol) == ["circle", "circle"]
    assert "no interval" in heading(figure)


def test_a_score_outside_its_interval_is_explained(loc, uncertainty):
    assert "outside" not in heading(plots.toxicity_by_depth(loc))
    narrow = dataclasses.replace(uncertainty, high=np.array([-3.5, 2.5]))
    part = dataclasses.replace(loc.by_part["mlp"], uncertainties={"attribution": narrow})
    assert "outside" in heading(plots.toxicity_by_depth(Located({"mlp": part})))


def test_axes_name_the_score_and_its_unit(loc):
    layout = plots.toxicity_by_depth(loc).layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("layer", "attribution (nats per token)")
    without = plots.toxicity_by_depth(one_score([1.0], score="gradient_norm"), "gradient_norm").layout
    assert without.yaxis.title.text == "gradient norm"


def test_attention_is_drawn_at_the_layers_that_have_it(mixed):
    figure = plots.toxicity_by_depth(mixed, part="attention")
    assert (list(figure.data[-1].x), list(figure.data[-1].y)) == ([1, 4], [3.0, 5.5])
    assert list(figure.data[1].x) == [1, 4, 4, 1]  # the interval
    assert heading(figure).startswith("Attention: attribution by depth in m ")
    figure = plots.layer_heatmap(mixed, part="attention")
    assert list(figure.data[0].y) == ["layer 1, attention", "layer 4, attention"]
    np.testing.assert_allclose(figure.data[0].z, [[0.25, 3 / 5.5], [1.0, 0.1 + 0.5 * 0.94]])
    hover = figure.data[0].hovertext[1][1]
    assert hover.startswith("layer 4, attention, attribution<br>score 5.5<br>95% interval [0.5, 2.5]")
    assert heading(figure).startswith("Attention: toxicity by depth in m ")


def test_all_parts_are_lines_of_one_figure(mixed, loc):
    figure = plots.toxicity_by_depth(mixed)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [(line.name, list(line.x), list(line.y)) for line in lines] == [
        ("MLP", [0, 1], [-3.0, 1.5]),
        ("attention", [1, 4], [3.0, 5.5]),
    ]
    assert lines[0].line.color != lines[1].line.color
    assert [list(line.marker.symbol) for line in lines] == [["circle", "circle-open"]] * 2
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert shown == ["shuffled labels, mean ± 2 sd", "MLP, 95% interval", "attention, 95% interval", "MLP", "attention"]
    assert "Question: does it carry toxicity? Filled markers" in heading(figure)


def test_a_single_part_is_drawn_as_if_it_were_the_only_one(loc, mixed):
    for draw in (plots.toxicity_by_depth, plots.layer_heatmap, plots.neuron_map):
        assert draw(loc).to_json() == draw(mixed, part="mlp").to_json()
    assert plots.neuron_map(mixed).to_json() == plots.neuron_map(loc).to_json()
    assert plots.relative_depth([mixed]).to_json() == plots.relative_depth([loc]).to_json()
    attention = plots.relative_depth([mixed], part="attention").data[-1]
    assert (list(attention.x), list(attention.y)) == ([0.25, 1.0], [3 / 5.5, 1.0])


def test_figures_draw_attention_if_only_attention_was_localized(mixed):
    attention_only = Located({"attention": mixed.by_part["attention"]})
    assert list(plots.layer_heatmap(attention_only).data[0].y) == ["layer 1, attention", "layer 4, attention"]
    line = plots.relative_depth([attention_only]).data[-1]
    assert (list(line.x), line.text[0].split("<br>")[0]) == ([0.25, 1.0], "layer 1, attention of 0 to 4")


def test_models_of_different_depth_share_one_axis():
    figure = plots.relative_depth({"a": one_score([1.0, -4.0, 2.0]), "b": one_score([0.0, 1.0, 2.0, 3.0, 6.0])})
    a, b = traces(figure)["a"], traces(figure)["b"]
    assert (list(a.x), list(a.y)) == ([0, 0.5, 1], [0.25, -1.0, 0.5])
    assert list(b.x) == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(b.y, np.array([0, 1, 2, 3, 6]) / 6)
    assert a.line.color != b.line.color
    assert a.text[1] == "layer 1 of 0 to 2<br>score -4"


def test_lines_have_the_names_of_the_models_if_no_names_are_given(loc):
    figure = plots.relative_depth([loc, one_score([1.0, 2.0], model="other")])
    assert [trace.name for trace in figure.data if trace.name] == ["m", "other"]
    band = figure.data[0]
    np.testing.assert_allclose(band.y, np.array([-2.0, 2.5, 0.5, -4.0]) / 3)
    assert "Bands: 95% intervals." in heading(figure)


def test_intervals_of_many_models_are_left_out(loc):
    figure = plots.relative_depth([loc] * 4)
    assert len(figure.data) == 4
    assert "Bands" not in heading(figure)


def test_a_model_of_one_layer_and_a_model_of_zeros_are_drawn():
    figure = plots.relative_depth([one_score([2.0]), one_score([0.0, 0.0])])
    assert [list(trace.y) for trace in figure.data] == [[1.0], [0.0, 0.0]]


def test_relative_depth_needs_a_localization():
    with pytest.raises(ToxlocError, match="at least one"):
        plots.relative_depth([])


def test_a_long_model_name_is_broken_into_lines_and_escaped():
    figure = plots.toxicity_by_depth(one_score([1.0], model="organisation/<b>model-of-a-very-long-name-70b"))
    title = figure.layout.title.text.split("<br><span")[0].split("<br>")
    assert title == ["Attribution by depth in", "organisation/&lt;b&gt;model-of-a-very-long-", "name-70b"]


def test_a_real_localization_is_drawn(lm, pairs):
    loc = localize(lm, pairs, ("activation", "auroc"))
    line = plots.toxicity_by_depth(loc, "activation").data[-1]
    assert list(line.x) == list(range(lm.n_layers))
    np.testing.assert_array_equal(line.y, loc.layer_scores("activation"))
    assert line.name == "activation contrast"
    heat = plots.layer_heatmap(loc).data[0]
    assert np.array(heat.z).shape == (lm.n_layers, 2)
    assert loc.heatmap().to_json() == plots.layer_heatmap(loc).to_json()
    best = np.array(plots.neuron_map(loc, "auroc").data[0].z)[:, 0]
    np.testing.assert_array_equal(best, loc.layer_scores("auroc"))  # the AUROC of a layer is that of its best neuron
    for draw in (plots.toxicity_by_depth, plots.neuron_map, lambda loc, score: plots.relative_depth([loc], score)):
        with pytest.raises(ToxlocError, match="'editability' was not computed"):
            draw(loc, "editability")
