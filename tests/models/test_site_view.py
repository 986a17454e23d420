"""A site in a model: the same weight, keys and outputs in the hooked and in the Hugging Face model."""

import pytest
import torch

from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_model
from toxloc import ToxlocError
from toxloc.models.batching import batches
from toxloc.models.sites import Site

D_MODEL, D_MLP, HEADS, WIDTH = 16, {"gpt2": 64, "gpt_neo": 64, "bloom": 64, "falcon": 64}, 2, 8
NORMED = ("gemma2", "gemma3_text", "olmo2")


def seen_at(lm, site):
    """Keys, output and contribution of a site on a batch, from its hooks and from forward hooks on the plain model."""
    view, batch, hooked, plain = lm.at(site), next(batches(lm, TEXTS)), {}, {}

    def flat(x):
        return x.detach().reshape(*batch.ids.shape, -1)[batch.real]

    places = {"keys": view.keys_hook, "m": view.output_hook, "written": view.write_hook}
    with (
        torch.no_grad(),
        lm.hooks([(place, lambda x, name=name: hooked.update({name: flat(x)})) for name, place in places.items()]),
    ):
        lm.forward(batch.ids, batch.mask)

    def on_linear(module, args, out):
        plain.update(keys=flat(args[0]), m=flat(out))

    def on_writer(module, args, out):
        plain.update(written=flat(out))

    handles = [view.linear.register_forward_hook(on_linear), view.writer.register_forward_hook(on_writer)]
    with torch.no_grad():
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask)
    for handle in handles:
        handle.remove()
    return hooked, plain


@pytest.mark.parametrize("family", sorted(DENSE))
def test_every_family_has_an_mlp_and_an_attention_in_every_layer(family):
    lm = random_model(family)
    assert lm.sites() == [Site(0, "mlp"), Site(0, "attention"), Site(1, "mlp"), Site(1, "attention")]
    assert lm.sites("attention") == [Site(0, "attention"), Site(1, "attention")]
    assert lm.sites("mlp", "attention") == lm.sites()
    for site in lm.sites():
        view, mlp = lm.at(site), site.part == "mlp"
        assert view.site == site
        assert view.n_units == (D_MLP.get(family, 48) if mlp else HEADS)
        assert view.width == (1 if mlp else WIDTH)
        assert view.W.shape == (view.d_in, D_MODEL) == (view.n_units * view.width, D_MODEL)
        assert view.has_norm == (view.norm is not None) == (family in NORMED)
        assert view.device == lm.device


@pytest.mark.parametrize("family", sorted(DENSE))
def test_both_trees_show_the_same_keys_and_outputs_and_the_output_is_keys_times_w(family):
    lm = random_model(family)
    for site in lm.sites():
        view = lm.at(site)
        hooked, plain = seen_at(lm, site)
        for name, values in plain.items():
            torch.testing.assert_close(hooked[name], values, rtol=1e-4, atol=1e-4)
        expected = plain["keys"] @ view.W + (0 if view.bias is None else view.bias)
        torch.testing.assert_close(plain["m"], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(plain["written"], plain["m"]) != (family in NORMED)


@pytest.mark.parametrize("family", NORMED)
def test_the_norm_after_a_site_multiplies_by_its_offset_and_weight(family):
    lm = random_model(family)
    for p in (lm.at(site).norm.weight for site in lm.sites()):
        with torch.no_grad():
            p.normal_(0, 1)
    for site in lm.sites():
        view, (_, plain) = lm.at(site), seen_at(lm, site)
        squares = plain["m"].pow(2).mean(-1, keepdim=True)
        unit = plain["m"] / (squares + lm.hf.config.rms_norm_eps).sqrt()
        torch.testing.assert_close(plain["written"], unit * (view.norm_offset + view.norm.weight), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_weight_is_live(family):
    """gpt2 stores the weight with the inputs first, llama transposed; a change of the view changes the weight."""
    lm = random_model(family)
    for site in lm.sites():
        view = lm.at(site)
        assert view.W.data_ptr() == view.linear.weight.data_ptr()
        with torch.no_grad():
            view.W[3, 5] = 77.0
        assert (view.linear.weight[3, 5] if family == "gpt2" else view.linear.weight[5, 3]) == 77.0
        assert lm.W_out(site)[3, 5] == 77.0
    lm.hf.to(torch.bfloat16)
    assert lm.at(0).W.dtype == torch.bfloat16


def test_the_rows_and_factors_of_a_head():
    lm = random_model("gemma2")  # 2 heads with d_head 8
    view = lm.at(Site(1, "attention"))
    assert view.rows(1) == slice(8, 16)
    assert view.per_key(torch.tensor([2.0, 3.0])).tolist() == [2.0] * 8 + [3.0] * 8
    keys = torch.arange(32.0).reshape(2, 16)
    assert view.per_unit(keys).tolist() == [
        [sum(range(8)), sum(range(8, 16))],
        [sum(range(16, 24)), sum(range(24, 32))],
    ]
    neurons = lm.at(1)
    assert neurons.rows(5) == slice(5, 6)
    factors = torch.arange(48.0)
    assert torch.equal(neurons.per_key(factors), factors)
    assert torch.equal(neurons.per_unit(factors), factors)


def test_the_bias_is_given_with_the_weight_if_the_family_has_a_bias():
    assert [len(list(random_model(family).at("0.attention").biased())) for family in ("gpt2", "llama")] == [2, 1]


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (2, r"no layer 2 in random-gpt2; .*0 to 1 with mlp and attention"),
        ("7.attention", "no layer 7, attention in random-gpt2"),
        (Site(-1), "no layer -1"),
    ],
)
def test_a_missing_site_is_named(tiny, site, words):
    with pytest.raises(ToxlocError, match=words):
        tiny.at(site)


@pytest.mark.parametrize(
    ("site", "unit", "words"),
    [
        (0, 64, "no neuron 64 in layer 0 of random-gpt2; .*neurons 0 to 63"),
        (1, -1, "no neuron -1 in layer 1"),
        ("1.attention", 2, "no head 2 in layer 1, attention of random-gpt2; .*heads 0 to 1"),
    ],
)
def test_a_missing_unit_is_named(tiny, site, unit, words):
    tiny.check_unit(site, 1)
    with pytest.raises(ToxlocError, match=words):
        tiny.check_unit(site, unit)
