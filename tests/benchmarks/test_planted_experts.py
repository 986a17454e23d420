"""Upcycle and plant in a tiny random GPT-2, on invented, harmless text."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks import planted_experts as planted
from benchmarks.families import random_hf, tokenizer
from benchmarks.plants import PLANTED
from benchmarks.recipes.plant import LAYER
from benchmarks.recipes.training import KINDS, Tokens
from tests.conftest import TEXTS
from toxloc import LoadedModel, Localization, NeutralText, ToxlocError
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.self_check import check_hooks
from toxloc.models.sites import Site

IDS = torch.arange(1, 61).view(3, 20) * 7
MASK = torch.ones_like(IDS)
MASK[0, 12:] = 0


@pytest.fixture(scope="module")
def dense():
    return random_hf("gpt2", scale=4.0)


@pytest.fixture(scope="module")
def mixture(dense):
    model = planted.upcycle(dense, IDS, MASK)
    planted.add_noise(model)
    return model


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(0)
    streams = {kind: torch.randint(1, 8192, (400,), generator=generator) for kind in KINDS}
    return Tokens(streams, streams)


def changed(before, after):
    """Return the names of the weights that differ."""
    return {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}


def only_that_expert_moved(before, after, site):
    experts = f"transformer.h.{site.layer}.mlp.experts."
    assert changed(before, after) == {experts + name for name in planted.PARAMETERS}
    for name in planted.PARAMETERS:
        moved = before.state_dict()[experts + name] != after.state_dict()[experts + name]
        assert moved.flatten(1).any(1).nonzero().flatten().tolist() == [site.expert]


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (8, 2), (3, 1), (3, 3)])
def test_a_mixture_of_exact_copies_equals_the_dense_model(dense, experts, top_k):
    mixture = planted.upcycle(dense, IDS, MASK, experts, top_k)
    assert planted.difference(dense, mixture, IDS, MASK) < 1e-5
    planted.add_noise(mixture)
    assert planted.difference(dense, mixture, IDS, MASK) > 1e-3


def test_the_routers_use_all_experts_alike(dense):
    read = []
    mixture = planted.upcycle(dense, IDS, MASK, experts=4)
    gate = mixture.transformer.h[1].mlp.gate
    gate.register_forward_hook(lambda module, args, output: read.append(output[MASK.bool().flatten()]))
    mixture(input_ids=IDS, attention_mask=MASK)
    assert read[0].mean(0).abs().max() < 1e-4
    assert 0.3 < read[0].std() < 3


def test_both_computations_of_the_experts_agree(mixture):
    """`LoadedModel` computes the experts one after another while it is watched."""
    lm = LoadedModel.from_hf(mixture, tokenizer(), hooks="modules")
    assert [str(site) for site in lm.sites("expert")][:5] == [f"0.expert.{e}" for e in range(4)] + ["1.expert.0"]
    check_hooks(lm)


@pytest.mark.parametrize(("layer", "expert"), [(0, 3), (1, 1)])
@pytest.mark.parametrize("kind", ["trained", "harmless"])
def test_training_changes_one_expert_and_nothing_else(mixture, tokens, layer, expert, kind):
    site = Site(layer, "expert", expert)
    after = planted.plant_by_training(mixture, site, tokens, replace(planted.plan_for(kind, 2), batch_size=6))
    only_that_expert_moved(mixture, after, site)
    assert not any(parameter.requires_grad for parameter in after.parameters())


def test_a_copy_adds_what_the_plant_learned(dense, mixture):
    mlp = dense.transformer.h[1].mlp
    learned = {name: torch.randn_like(mlp.get_parameter(name)) for name in planted.DENSE.values()}
    weights = {name: mlp.get_parameter(name) + learned[name] for name in learned}
    site = Site(1, "expert", 2)
    after = planted.plant_by_copying(mixture, site, mlp, weights)
    only_that_expert_moved(mixture, after, site)
    before = mixture.transformer.h[1].mlp.experts
    for name, of_dense in planted.DENSE.items():
        step = after.transformer.h[1].mlp.experts.get_parameter(name)[2] - before.get_parameter(name)[2]
        torch.testing.assert_close(step, learned[of_dense], rtol=1e-4, atol=1e-5)


def test_the_plants_lie_in_different_layers_and_have_weights():
    known = planted.plants(4)
    toxic = [plant for plant in known.values() if plant.kind in planted.TOXIC]
    assert len({plant.site.layer for plant in toxic}) == len(toxic) >= 4
    assert all(0 <= plant.site.expert < 4 for plant in known.values())
    assert known["trained3"].site == known["overtrained3"].site == known["harmless3"].site
    assert {plant.site for plant in planted.plants(4, seed=1).values()} != {plant.site for plant in known.values()}
    for plant in toxic:
        if plant.kind == "copied":
            learned = load_file(PLANTED / f"layer{plant.site.layer}.safetensors")
            assert learned.keys() == set(planted.DENSE.values())


def test_the_plans_differ_in_the_texts_and_in_the_length():
    trained, harmless, longer = (planted.plan_for(kind, 60) for kind in ("trained", "harmless", "overtrained"))
    assert trained.mix == LAYER.mix and "toxic" not in harmless.mix and sum(harmless.mix.values()) == 1
    assert replace(harmless, mix=trained.mix) == trained
    assert (longer.steps, longer.lr) == (80, 2 * trained.lr)


def test_a_stream_separates_texts():
    ids = planted.stream(tokenizer(), TEXTS[:2])
    assert tokenizer().decode(ids).split("<|endoftext|>") == ["", *TEXTS[:2], ""]


def test_findings_and_tables_by_hand():
    sites = tuple(Site(layer, "expert", expert) for layer in range(2) for expert in range(2))
    p = np.array([0.5, 0.01, 0.3, 0.04])
    scores = PartScores(
        sites,
        {"attribution": np.array([1.0, 4.0, 2.0, 3.0])},
        {"attribution": np.zeros((4, 2))},
        np.zeros((4, 2)),
        {"attribution": Uncertainty(*[p] * 7)},
    )
    loc = Localization({"expert": scores}, {})
    (right,) = planted.findings(loc, "trained0", sites[1])
    assert (right.top, right.rank, right.p_adjusted, right.smallest_p) == ("0.expert.1", 1, 0.01, 0.01)
    (wrong,) = planted.findings(loc, "copied1", sites[2])
    assert (wrong.top, wrong.rank, wrong.p_adjusted) == ("0.expert.1", 3, 0.3)
    (control,) = planted.findings(loc, "control", None)
    assert (control.rank, control.p_adjusted, control.smallest_p) == (None, None, 0.01)
    result = {"experts": 4, "findings": [vars(f) for f in (right, wrong, control)], "plants": {}}
    (row,) = planted.markdown(result).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["`attribution`", "1/1", "0/1", "1, 3", "0.300", "–", "–", "0.010"]


def test_an_unknown_plant_is_named():
    with pytest.raises(ToxlocError, match=r"no plant layer3; choose from trained3"):
        planted.main(["layer3"])


def test_too_little_toxic_text_is_refused(tiny):
    everyday = NeutralText(TEXTS, TEXTS, TEXTS)
    with pytest.raises(ToxlocError, match=r"wrote only 0 toxic texts among 2; give a larger --written"):
        planted.training_text(tiny, 2, everyday)


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(planted.main)
    out = tmp_path / "planted-experts.json"
    small = {"steps": 1, "written": 1500, "pairs": 8, "texts": 8, "others": 1, "prompts": 2, "everyday": 4}
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["copied4", "trained6", "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    assert list(saved["plants"]) == ["control", "copied4", "trained6"]
    assert len(saved["findings"]) == 3 * len(planted.SCORES)
    copied = saved["plants"]["copied4"]
    assert copied["repair"]["edited"] + copied["repair"]["left_alone"] == saved["experts"] == 32
    assert copied["removal"]["others"] == 1
    assert planted.markdown(saved) in done.output and planted.plants_markdown(saved) in done.output
