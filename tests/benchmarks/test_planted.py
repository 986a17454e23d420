import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import planted
from benchmarks.planted import findings, kind_of, retrieval, score_markdown, summary
from benchmarks.plants import Plant, planted_model, plants
from toxloc import Localization, load_contrast, localize
from toxloc.causal.curve import matched
from toxloc.causal.knockout import KnockoutTest
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site


def test_retrieval_by_hand():
    scores = np.array([[5.0, 1.0, 4.0], [3.0, 2.0, 0.0]])
    planted = np.array([[True, False, False], [True, False, True]])
    assert retrieval(scores, planted, 2) == (0.5, pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3))


def hand_made():
    """A localization of three MLPs of two neurons and three attentions of two heads, with one score."""

    def part(name, sites, units, p):
        return PartScores(
            tuple(Site(layer, name) for layer in range(3)),
            {"s": np.array(sites)},
            {"s": np.array(units)},
            np.zeros((3, 2)),
            {"s": Uncertainty(*[np.array(p)] * 7)},
        )

    mlp = part("mlp", [1.0, 4.0, 2.0], [[0.0, 9.0], [8.0, 7.0], [0.0, 0.0]], [0.5, 0.01, 0.3])
    attention = part("attention", [0.0, 3.0, -1.0], [[0.0, 1.0], [5.0, 2.0], [0.0, 0.0]], [0.9, 0.2, 0.04])
    return Localization({"mlp": mlp, "attention": attention}, {})


def finding_of(name, **sites):
    (finding,) = findings(hand_made(), name, "builtin", Plant(name, {Site.of(k): v for k, v in sites.items()}))
    return finding


def test_findings_by_hand():
    right, wrong = finding_of("layer1", **{"1.mlp": None}), finding_of("layer0", **{"0.mlp": None})
    assert (right.top, right.rank, right.p_adjusted, right.p_true, right.kind) == ("1.mlp", 1, 0.01, 0.01, "mlp")
    assert right.margin == pytest.approx((4 - 3) / 5) and right.first and right.significant
    assert (wrong.rank, wrong.p_true, wrong.first) == (4, 0.5, False)
    assert wrong.margin == pytest.approx((1 - 4) / 5)
    two = finding_of("both", **{"1.mlp": None, "1.attention": None})
    assert (two.kind, two.rank, two.p_true, two.first, two.significant) == ("two", 1, 0.2, True, False)
    assert two.margin == pytest.approx((3 - 2) / 5)
    assert finding_of("both", **{"1.mlp": None, "0.attention": None}).rank == 4
    neuron = finding_of("neurons1", **{"1.mlp": (0, 1)})
    assert (neuron.kind, neuron.precision, neuron.precision_in_site) == ("neurons", 0.5, 1.0)
    assert neuron.average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    head = finding_of("head1", **{"1.attention": (1,)})
    assert (head.kind, head.rank, head.precision, head.precision_in_site) == ("head", 2, 0.0, 0.0)
    assert finding_of("head1", **{"1.attention": (0,)}).precision == 1.0  # the highest of all heads, not of all neurons
    (control,) = findings(hand_made(), "clean", "builtin", None)
    assert (control.top, control.kind, control.rank, control.p_true) == ("1.mlp", None, None, None)


def test_the_summary_by_hand():
    findings_of_all = [
        finding_of("layer1", **{"1.mlp": None}),
        finding_of("layer0", **{"0.mlp": None}),
        finding_of("neurons1", **{"1.mlp": (0, 1)}),
        finding_of("both", **{"1.mlp": None, "1.attention": None}),
        *findings(hand_made(), "clean", "builtin", None),
    ]
    (row,) = summary(findings_of_all)
    assert row["plants"] == {"mlp": 2, "neurons": 1, "attention": 0, "head": 0, "two": 1}
    assert row["first"] == {"mlp": 1, "neurons": 1, "attention": 0, "head": 0, "two": 1}
    assert row["significant"] == {"mlp": 1, "neurons": 1, "attention": 0, "head": 0, "two": 0}
    assert (row["neuron_precision"], row["neuron_precision_in_site"], row["head_precision"]) == (0.5, 1.0, None)


def test_the_table_of_a_score_by_hand():
    plants_of = {"mlp": 2, "neurons": 1, "attention": 1, "head": 0, "two": 1}
    row = {"score": "auroc", "plants": plants_of, "first": plants_of | {"mlp": 1}, "neuron_precision": 0.25}
    row["significant"] = {"mlp": 1, "neurons": 0, "attention": 0, "head": 0, "two": 0}
    other = row | {"first": row["significant"], "neuron_precision": None}
    result = {"summary": [row | {"contrast": "builtin"}, other | {"contrast": "sampled"}, row | {"score": "other"}]}
    table = score_markdown(result, "auroc")
    assert table.splitlines()[2:] == [
        "| planted sites first, of 5 models | 4 | 1 |",
        "| first, with adjusted p < .05, of 5 models | 1 | 1 |",
        "| share of planted neurons among the 64 highest | 0.25 | – |",
    ]
    assert "| planted sites first, of 5 models, `auroc` |" in score_markdown(result, "auroc", "auroc")


def test_the_kind_of_every_published_plant_is_in_its_name():
    names = {"mlp": "layer", "neurons": "neurons", "attention": "attention", "head": "head", "two": "both"}
    for name, plant in plants().items():
        assert name.startswith(names[kind_of(plant)])


def test_attribution_finds_a_plant_and_removing_it_proves_it():
    lm = planted_model("neurons3")
    plant = plants()["neurons3"]
    fit, rest = load_contrast().split(0.5)
    held_out = rest.limited(48)
    loc = localize(lm, fit, ["attribution", "combined", "gradient_norm"])
    by_score = {f.score: f for f in findings(loc, "neurons3", "builtin", plant)}
    assert by_score["attribution"].first
    assert by_score["gradient_norm"].rank > 1
    chance = 64 / loc.activation_size.size
    assert by_score["combined"].precision > by_score["attribution"].precision > 5 * chance
    assert by_score["combined"].precision > 0.4
    neurons = list(plant.units)
    test = KnockoutTest(lm, held_out)
    control = test.remove(matched(neurons, loc.unit_sizes(), np.random.default_rng(0)))
    removed = test.remove(neurons)
    assert removed.effect_ci[0] > max(0, control.effect_ci[1])


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(planted.main)
    out = tmp_path / "planted.json"
    done = CliRunner().invoke(
        app, ["layer4", "--score", "attribution", "--pairs", "40", "--sampled-pairs", "8", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    assert [f["contrast"] for f in saved["findings"]] == ["builtin", "sampled"]
    assert saved["findings"][0]["rank"] == 1
    assert "Planted toxicity" in done.output
