import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import planted
from benchmarks.planted import Truth, findings, planted_model, retrieval, summary, truths
from toxloc import Localization, ToxlocError, load_contrast, localize
from toxloc.causal.curve import matched
from toxloc.causal.knockout import KnockoutTest
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site


def test_a_plant_differs_from_the_clean_model_where_the_truth_says_and_nowhere_else():
    clean = dict(planted_model("clean").hf.named_parameters())
    for name in ("layer6", "neurons3"):
        truth = truths()[name]
        for key, value in planted_model(name).hf.named_parameters():
            changed = value != clean[key]
            if f"h.{truth.layer}.mlp." not in key:
                assert not changed.any(), key
            elif truth.neurons and key.endswith("c_proj.weight"):
                assert torch.equal(changed.any(1).nonzero()[:, 0], torch.tensor(truth.neurons))
            elif truth.neurons and not key.endswith("c_proj.bias"):
                assert torch.equal(changed.reshape(-1, 1024).any(0).nonzero()[:, 0], torch.tensor(truth.neurons))
            elif not truth.neurons:
                assert changed.float().mean() > 0.9


def test_an_unknown_plant_is_named():
    with pytest.raises(ToxlocError, match=r"'layer9'; choose one of layer0"):
        planted_model("layer9")


def test_retrieval_by_hand():
    scores = np.array([[5.0, 1.0, 4.0], [3.0, 2.0, 0.0]])
    planted = np.array([[True, False, False], [True, False, True]])
    assert retrieval(scores, planted, 2) == (0.5, pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3))


def test_findings_and_summary_by_hand():
    p = np.array([0.5, 0.01, 0.3])
    uncertainty = Uncertainty(*[p] * 7)
    scores = PartScores(
        tuple(map(Site, range(3))),
        {"s": np.array([1.0, 4.0, 2.0])},
        {"s": np.zeros((3, 2))},
        np.zeros((3, 2)),
        {"s": uncertainty},
    )
    loc = Localization({"mlp": scores}, {})
    (right,) = findings(loc, "layer1", "builtin", Truth(1, None))
    assert (right.top, right.rank, right.p_adjusted) == (1, 1, 0.01)
    assert right.margin == pytest.approx((4 - 2) / 3)
    (wrong,) = findings(loc, "layer0", "builtin", Truth(0, None))
    assert (wrong.rank, wrong.margin) == (3, pytest.approx((1 - 4) / 3))
    (neuron,) = findings(loc, "neurons2", "builtin", Truth(2, (1,)))
    assert (neuron.rank, neuron.precision) == (2, 0.0)
    (control,) = findings(loc, "clean", "builtin", None)
    assert (control.top, control.rank) == (1, None)
    (row,) = summary([right, wrong, neuron, control])
    assert (row["layers_found"], row["layer_plants"], row["mean_rank"]) == (1, 2, 2.0)
    assert (row["neuron_layers_found"], row["neuron_plants"], row["precision_at_64"]) == (0, 1, 0.0)


def test_attribution_finds_a_plant_and_removing_it_proves_it():
    lm = planted_model("neurons3")
    truth = truths()["neurons3"]
    fit, rest = load_contrast().split(0.5)
    held_out = rest.limited(48)
    loc = localize(lm, fit, ["attribution", "combined", "gradient_norm"])
    by_score = {f.score: f for f in findings(loc, "neurons3", "builtin", truth)}
    assert by_score["attribution"].rank == 1
    assert by_score["gradient_norm"].rank > 1
    chance = 64 / loc.activation_size.size
    assert by_score["combined"].precision > by_score["attribution"].precision > 5 * chance
    assert by_score["combined"].precision > 0.4
    neurons = [(Site(truth.layer), j) for j in truth.neurons]
    test = KnockoutTest(lm, held_out)
    control = test.remove(matched(neurons, loc.unit_sizes(), np.random.default_rng(0)))
    removed = test.remove(neurons)
    assert removed.effect_ci[0] > max(0, control.effect_ci[1])


@pytest.mark.slow
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
    assert "1/1" in done.output
