import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import TEXTS
from toxloc import ContrastSet, Localization, ToxlocError, localize
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
BOTH = ("mlp", "attention")
NEURONS = np.array([[0.0, 3.0, -5.0], [9.0, 1.0, 2.0]])
HEADS = np.array([[4.0, 0.5], [8.0, -1.0]])


def part(name, layers, units):
    return PartScores((Site(0, name), Site(1, name)), {"s": np.array(layers)}, {"s": units}, np.abs(units))


@pytest.fixture
def by_hand():
    return Localization(
        {"mlp": part("mlp", [1.0, 2.0], NEURONS), "attention": part("attention", [5.0, -1.0], HEADS)}, {"model": "m"}
    )


@pytest.fixture
def both(tiny):
    return localize(tiny, PAIRS, ("attribution", "auroc", "editability"), parts=BOTH, draws=30)


def test_top_layers_and_neurons(by_hand):
    assert by_hand.top_layers("s", 2) == [1, 0]
    assert by_hand.top_neurons("s", 3) == [(1, 0), (0, 1), (1, 2)]
    with pytest.raises(ToxlocError, match=r"k=7: .* 1 to 6"):
        by_hand.top_neurons("s", 7)
    with pytest.raises(ToxlocError, match="'x' was not computed; choose from s"):
        by_hand.layer_scores("x")


def test_top_units_of_attentions_and_top_sites(by_hand):
    assert by_hand.top_layers("s", 2, "attention") == [0, 1]
    assert by_hand.top_units("s", 3, "attention") == [
        (Site(1, "attention"), 0),
        (Site(0, "attention"), 0),
        (Site(0, "attention"), 1),
    ]
    assert by_hand.top_units("s", 1) == [(Site(1), 0)]
    assert by_hand.top_heads("s", 3) == by_hand.top_units("s", 3, "attention")
    assert by_hand.top_sites("s", 4) == [Site(0, "attention"), Site(1), Site(0), Site(1, "attention")]
    assert by_hand.site_scores("s")["1.attention"] == -1.0
    assert by_hand.unit_sizes()[0].tolist() == [0.0, 3.0, 5.0]
    for request, message in (
        (lambda: by_hand.top_sites("s", 5), "k=5: .* 1 to 4, .* sites"),
        (lambda: by_hand.top_units("s", 0), "k=0: .* 1 to 6, .* units"),
        (lambda: by_hand.top_layers("s", 3), "k=3: .* 1 to 2, .* layers"),
        (lambda: by_hand.site_scores("x"), "'x' was not computed"),
        (lambda: by_hand.layer_scores("s", "expert"), "'expert' was not localized.* has mlp, attention"),
    ):
        with pytest.raises(ToxlocError, match=message):
            request()


def test_the_default_part_is_the_mlps_unless_only_attentions_were_localized(by_hand):
    assert (by_hand.parts, by_hand.scores) == (BOTH, ("s",))
    assert by_hand.layers["s"].tolist() == by_hand.layer_scores("s").tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(by_hand.neurons["s"], NEURONS)
    np.testing.assert_array_equal(by_hand.activation_size, np.abs(NEURONS))
    alone = Localization({"attention": by_hand.by_part["attention"]}, {"model": "m"})
    np.testing.assert_array_equal(alone.neuron_scores("s"), HEADS)
    with pytest.raises(ToxlocError, match=r"'mlp' was not localized.* has attention"):
        alone.top_neurons("s", 1)


def test_the_table_has_a_row_for_every_score_and_site(both):
    table = both.table()
    assert len(table) == 3 * 4
    for name in BOTH:
        row = table[(table.score == "attribution") & (table.layer == 1) & (table.part == name)].iloc[0]
        assert row.value == both.layer_scores("attribution", name)[1]
        assert row.p_adjusted == both.part_uncertainty("attribution", name).p_adjusted[1]
        assert row.low <= row.high
    assert table[table.score == "editability"].p.isna().all()


def test_the_table_of_units_has_all_scores_of_the_units(both):
    neurons = both.neuron_table("attribution", 3)
    assert list(zip(neurons.layer, neurons.neuron, strict=True)) == both.top_neurons("attribution", 3)
    assert list(neurons.attribution) == sorted(both.neuron_scores("attribution").ravel())[:-4:-1]
    heads = both.neuron_table("attribution", 4, "attention")
    assert list(heads.columns) == ["layer", "head", "attribution", "auroc", "editability"]
    for _, row in heads.iterrows():
        assert row.editability == both.neuron_scores("editability", "attention")[int(row.layer), int(row["head"])]


@pytest.mark.parametrize("parts", [("mlp",), ("attention",), BOTH])
def test_save_and_load(tiny, tmp_path, parts):
    loc = localize(tiny, PAIRS, ("attribution", "editability"), parts=parts, draws=20)
    loc.save(tmp_path / "loc")
    again = Localization.load(tmp_path / "loc")
    assert again.about == loc.about
    assert (again.parts, again.sites(), again.scores) == (loc.parts, loc.sites(), loc.scores)
    for name in parts:
        np.testing.assert_array_equal(again.by_part[name].size, loc.by_part[name].size)
        assert again.part_uncertainty("editability", name) is None
        for column in Uncertainty.names():
            np.testing.assert_array_equal(
                getattr(again.part_uncertainty("attribution", name), column),
                getattr(loc.part_uncertainty("attribution", name), column),
            )
        for score in loc.scores:
            np.testing.assert_array_equal(again.layer_scores(score, name), loc.layer_scores(score, name))
            np.testing.assert_array_equal(again.neuron_scores(score, name), loc.neuron_scores(score, name))
    with pytest.raises(ToxlocError, match="not empty"):
        loc.save(tmp_path / "loc")
    with pytest.raises(ToxlocError, match="holds no localization"):
        Localization.load(tmp_path)


def test_a_folder_of_version_2_still_loads(tmp_path):
    """Version 2 stored MLPs only and listed no sites."""
    arrays = {
        "layers.attribution": np.array([1.0, 2.0, 3.0]),
        "neurons.attribution": np.arange(12.0).reshape(3, 4),
        "layers.editability": np.array([5.0, 4.0, 3.0]),
        "neurons.editability": np.ones((3, 4)),
        "activation_size": np.full((3, 4), 0.5),
        **{
            f"uncertainty.attribution.{column}": np.array([0.1, 0.2, 0.3]) * (i + 1)
            for i, column in enumerate(("low", "high", "null_mean", "null_sd", "z", "p", "p_adjusted"))
        },
    }
    save_file(arrays, tmp_path / "scores.safetensors")
    about = {"model": "gpt2", "fingerprint": "abc", "contrast": "builtin", "n_toxic": 7, "n_neutral": 7}
    (tmp_path / "localization.json").write_text(
        json.dumps({"format_version": 2, "scores": ["attribution", "editability"], **about})
    )
    loc = Localization.load(tmp_path)
    assert loc.about == about
    assert (loc.parts, loc.sites()) == (("mlp",), (Site(0), Site(1), Site(2)))
    assert loc.scores == ("attribution", "editability")
    assert loc.top_neurons("attribution", 2) == [(2, 3), (2, 2)]
    np.testing.assert_allclose(loc.uncertainty["attribution"].p_adjusted, [0.7, 1.4, 2.1])
    assert "editability" not in loc.uncertainty
    assert loc.activation_size.shape == (3, 4)
    loc.save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "localization.json").read_text())["format_version"] == 3


def without_array(name):
    def damage(folder):
        arrays = load_file(folder / "scores.safetensors")
        del arrays[name]
        save_file(arrays, folder / "scores.safetensors")

    return damage


def with_json(**fields):
    def damage(folder):
        path = folder / "localization.json"
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in content.items() if value != "REMOVED"}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_array("attention/layers.attribution"), "is damaged or incomplete"),
        (without_array("neurons.auroc"), "is damaged or incomplete"),
        (without_array("attention/activation_size"), "is damaged or incomplete"),
        (without_array("uncertainty.attribution.low"), "is damaged or incomplete"),
        (lambda folder: (folder / "scores.safetensors").write_bytes(b"no tensors"), "is damaged or incomplete"),
        (lambda folder: (folder / "scores.safetensors").unlink(), "is damaged or incomplete"),
        (lambda folder: (folder / "localization.json").write_text("{"), "localization"),
        (with_json(scores="REMOVED"), "is damaged or incomplete"),
        (with_json(scores=7), "is damaged or incomplete"),
        (with_json(sites=["0.mlp"]), "is damaged or incomplete"),
        (with_json(sites={"mlp": ["0.expert"]}), "is damaged or incomplete"),
        (with_json(sites={"mlp": ["0.mlp", "1.mlp", "2.mlp"]}), "is damaged or incomplete"),
        (with_json(format_version=99), "another format version"),
        (with_json(format_version="REMOVED"), "another format version"),
    ],
)
def test_a_damaged_folder_raises_a_toxloc_error(both, tmp_path, damage, message):
    both.save(tmp_path / "loc")
    damage(tmp_path / "loc")
    with pytest.raises(ToxlocError, match=message):
        Localization.load(tmp_path / "loc")
