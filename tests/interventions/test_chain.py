import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import TRNE, Chain, ContrastSet, Meow2X, ToxlocError, load_intervention
from toxloc.interventions.rank_one import RankOne
from toxloc.models.batching import batches
from toxloc.models.sites import Site


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        return (
            lm.forward(batch.ids, batch.mask)[batch.real],
            lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
        )


@pytest.fixture
def parts(tiny):
    """Two edits of the same weights, which do not commute, and an edit with hooks."""
    return [
        TRNE.fit(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), norm=0.3),
        Meow2X(layers=[0, 1], scale=0.5, mode="weights"),
        Meow2X(neurons=[(1, 3)], scale=0.0),
    ]


def test_a_chain_is_its_parts_in_order_and_leaves_no_trace(tiny, parts):
    before = bits(tiny)
    with parts[0].applied(tiny), parts[1].applied(tiny), parts[2].applied(tiny):
        expected = logits(tiny)
    with Chain(parts).applied(tiny):
        assert tiny.interventions[-1].kind == "chain"
        for actual, wanted in zip(logits(tiny), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    assert same_bits(before, tiny)
    with Chain([parts[1], parts[0], parts[2]]).applied(tiny):
        assert (logits(tiny)[0] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ctrl_c_restores_every_weight(dtype, parts):
    lm = random_model(dtype=dtype)
    before = bits(lm)
    with pytest.raises(KeyboardInterrupt), Chain(parts).applied(lm):
        assert not same_bits(before, lm)
        raise KeyboardInterrupt
    assert same_bits(before, lm)


def test_a_part_that_fails_reverts_the_earlier_parts(tiny, parts, monkeypatch):
    before = bits(tiny)
    monkeypatch.setattr(parts[2], "_install", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Chain(parts).apply(tiny)
    assert same_bits(before, tiny)
    assert tiny.interventions == []


def test_save_load_and_bake(tiny, parts, tmp_path):
    chain = Chain(parts)
    assert not chain.in_weights
    chain.save(tmp_path / "chain")
    again = load_intervention(tmp_path / "chain")
    with chain.applied(tiny):
        expected = logits(tiny)[0]
    for same in (again, again.baked()):
        with same.applied(tiny):
            torch.testing.assert_close(logits(tiny)[0], expected, rtol=1e-5, atol=1e-5)
    assert again.baked().in_weights
    assert again.parts[0].record == parts[0].record


def test_parts_that_cannot_be_chained(tiny, parts):
    with pytest.raises(ToxlocError, match="got none"):
        Chain([])
    with pytest.raises(ToxlocError, match=r"each only once; got TRNE.*TRNE"):
        Chain([parts[0], parts[0]])
    with parts[0].applied(tiny), pytest.raises(ToxlocError, match="revert it before the chain"):
        Chain(parts).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 7"):
        Chain([Meow2X(layers=[7])]).apply(tiny)


def test_leaves_and_low_rank_form_of_a_chain_of_chains(tiny):
    torch.manual_seed(0)
    first, second = (
        TRNE([RankOne(site, torch.randn(tiny.at(site).d_in), torch.randn(16)) for site in sites])
        for sites in ([0, "1.attention"], ["1.attention"])
    )
    chain = Chain([first, Chain([second])])
    assert chain.leaves() == [first, second]
    factors = chain.low_rank()
    assert list(factors) == [Site(0), Site(1, "attention")]
    before = {site: tiny.W_out(site).clone() for site in factors}
    with chain.applied(tiny):
        for site, (u, v) in factors.items():
            torch.testing.assert_close(tiny.W_out(site) - before[site], u.T @ v, rtol=1e-4, atol=1e-5)
    assert [len(u) for u, _ in factors.values()] == [1, 2]
    assert Chain([first, Meow2X(layers=[0], mode="weights")]).low_rank() == {}


def test_heads_neurons_and_W_O_in_one_chain_leave_no_trace(tiny):
    before = bits(tiny)
    edit = TRNE([RankOne("0.attention", torch.ones(16), torch.ones(16))])
    meow = Meow2X(layers=["1.attention"], neurons=[("0.attention", 1), (0, 3)], scale=0.5)
    with edit.applied(tiny), meow.applied(tiny):
        expected = logits(tiny)
    with Chain([edit, meow]).baked().applied(tiny):
        for actual, wanted in zip(logits(tiny), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    assert same_bits(before, tiny)
