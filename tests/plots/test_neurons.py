import numpy as np

from toxloc import plots

from .conftest import Located, Scores


def localization(rows, score="attribution"):
    rows = np.array(rows)
    return Located({"mlp": Scores({score: rows.max(1)}, {score: rows})})


def test_neurons_are_sorted_and_the_extremes_are_kept(loc):
    z = np.array(plots.neuron_map(loc, bins=50).data[0].z)
    assert z.shape == (2, 50)
    assert (np.diff(z, axis=1) <= 0).all()
    np.testing.assert_allclose(z[:, 0], loc.neuron_scores("attribution", "mlp").max(1))
    np.testing.assert_allclose(z[:, -1], loc.neuron_scores("attribution", "mlp").min(1))


def test_a_cell_names_its_neuron_or_says_how_many_it_averages():
    heat = plots.neuron_map(localization([[1.0, -7.0, 9.0, 3.0, 2.0, -1.0]]), bins=3).data[0]
    # In order: neurons 2, 3, 4, 0, 5, 1 with 9, 3, 2, 1, -1, -7.
    assert [list(row) for row in heat.z] == [[9.0, 1.5, -7.0]]
    assert list(heat.text[0]) == [
        "neuron 2<br>rank 1 of 6",
        "mean of 2 neurons<br>ranks 3 to 4 of 6",
        "neuron 1<br>rank 6 of 6",
    ]


def test_every_cell_is_a_neuron_if_there_are_enough_bins():
    heat = plots.neuron_map(localization([[1.0, 3.0, 2.0]])).data[0]
    assert [list(row) for row in heat.z] == [[3.0, 2.0, 1.0]]
    assert [text.split("<br>")[0] for text in heat.text[0]] == ["neuron 1", "neuron 2", "neuron 0"]


def test_the_colour_scale_is_diverging_around_the_centre_unless_no_score_is_negative():
    signed = plots.neuron_map(localization([[2.0, -2.0]])).data[0]
    assert (signed.zmin, signed.zmax) == (-2, 2)
    chance = plots.neuron_map(localization([[0.75, 0.25]], "auroc"), "auroc").data[0]
    assert (chance.zmin, chance.zmax) == (0.25, 0.75)
    size = plots.neuron_map(localization([[2.0, 2.0]], "gradient_norm"), "gradient_norm").data[0]
    assert (size.zmin, size.zmax) == (0, 2)
    assert size.colorscale != signed.colorscale == chance.colorscale


def test_the_title_names_the_score_of_a_neuron(loc):
    assert plots.neuron_map(loc).layout.title.text.startswith("Neurons by attribution in m<br>")
    figure = plots.neuron_map(localization([[0.75, 0.25]], "auroc"), "auroc")
    assert figure.layout.title.text.startswith("Neurons by AUROC in m<br>")
    assert figure.data[0].colorbar.title.text == "AUROC (0.5 is chance)"
    assert figure.layout.xaxis.title.text == "neurons, highest score first (%)"


def test_attention_has_heads(mixed):
    figure = plots.neuron_map(mixed, part="attention")
    heat = figure.data[0]
    assert list(heat.y) == ["layer 1, attention", "layer 4, attention"]
    assert [list(row) for row in heat.z] == [[9.0, 1.0, -7.0], [3.0, 2.0, 0.5]]
    assert list(heat.text[1]) == ["head 1<br>rank 1 of 3", "head 2<br>rank 2 of 3", "head 0<br>rank 3 of 3"]
    assert figure.layout.title.text.startswith("Attention: heads by attribution in m<br>")
    assert figure.layout.xaxis.title.text == "heads, highest score first (%)"
    averaged = plots.neuron_map(mixed, bins=2, part="attention").data[0]
    assert averaged.text[0][0] == "head 2<br>rank 1 of 3"
