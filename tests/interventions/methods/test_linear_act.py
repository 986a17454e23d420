import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TEXTS, bits, random_model, same_bits
from tests.interventions.test_unit_scaling import logits
from toxloc import ContrastSet, NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.budget import Budget
from toxloc.interventions.methods.linear_act import LinearAcT, Transport

PAIRS = ContrastSet([*TEXTS[:3], "Nobody likes you, so leave."], TEXTS[1:])
UNEVEN = ContrastSet(TEXTS[:2], TEXTS[2:])
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2])


def column(*values):
    return torch.tensor(values)[:, None]


def fit_by_hand(toxic, neutral):
    """Slope, intercept and range of one unit, by numpy's polynomial fit on the sorted values."""
    x, y = np.sort(toxic), np.sort(neutral)
    if len(x) != len(y):
        y = np.interp(np.linspace(0, 1, len(x)), np.linspace(0, 1, len(y)), y)
    return *np.polyfit(x, y, 1), x[0], x[-1]


def test_a_map_by_hand():
    """The sorted values 0, 1, 2 and 1, 3, 8 have the slope (1 (8 - 4) + 1 (4 - 1)) / 2, through (1, 4)."""
    fit = Transport.between(column(2.0, 0.0, 1.0), column(3.0, 8.0, 1.0))
    assert (fit.omega.item(), fit.beta.item(), fit.low.item(), fit.high.item()) == (3.5, 0.5, 0, 2)
    a = column(-0.1, 0.0, 1.0, 2.0, 2.1)
    assert fit.moved(a, 1.0)[:, 0].tolist() == pytest.approx([-0.1, 0.5, 4, 7.5, 2.1])
    assert fit.moved(a, 0.5)[:, 0].tolist() == pytest.approx([-0.1, 0.25, 2.5, 4.75, 2.1])


def test_sides_of_different_number_are_matched_by_quantiles():
    """The three quantiles (0, 1/2, 1) of 0, 4, 6, 10 are 0, 5, 10."""
    fit = Transport.between(column(1.0, 2.0, 3.0), column(10.0, 0.0, 4.0, 6.0))
    assert (fit.omega.item(), fit.beta.item()) == pytest.approx((5, -5))
    assert Transport.between(column(1.0, 3.0), column(4.0, 0.0, 1.0)).omega.item() == pytest.approx(2)


def test_a_unit_that_never_varies_is_shifted():
    fit = Transport.between(column(0.1, 0.1, 0.1), column(1.0, 2.0, 3.0))
    assert (fit.omega.item(), fit.low.item()) == (1, pytest.approx(0.1))
    assert fit.moved(column(0.1)).item() == pytest.approx(2)


@given(omega=st.floats(0, 5), beta=st.floats(-5, 5), seed=st.integers(0, 99))
def test_an_affine_map_of_shuffled_rows_is_recovered(omega, beta, seed):
    rng = np.random.default_rng(seed)
    source = torch.from_numpy(rng.normal(size=(9, 3))).float()
    target = (omega * source + beta)[torch.from_numpy(rng.permutation(9))]
    fit = Transport.between(source, target)
    torch.testing.assert_close(fit.moved(source), omega * source + beta, rtol=1e-4, atol=1e-4)


def mean_writes(lm, texts, layer, maps=()):
    """MLP output of a layer of the plain model with `maps` applied, averaged over the tokens except the first."""
    rows, handles = [], []

    def moved(out, omega, beta, low, high):
        return torch.where((out >= low) & (out <= high), out * omega + beta, out)

    for i, numbers in enumerate(maps):
        tensors = [torch.tensor(part, dtype=torch.float32) for part in np.array(numbers).T]
        handles.append(
            lm.contribution(i).register_forward_hook(lambda module, args, out, tensors=tensors: moved(out, *tensors))
        )
    handles.append(
        lm.contribution(layer).register_forward_hook(
            lambda module, args, out: rows.append(out.reshape(-1, out.shape[-1])[1:].double().mean(0).numpy())
        )
    )
    with torch.no_grad():
        for text in texts:
            lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]]))
    for handle in handles:
        handle.remove()
    return np.array(rows)


@pytest.mark.parametrize("pairs", [PAIRS, UNEVEN])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_maps_of_a_model_by_numpy_and_the_plain_model(family, sequential, pairs):
    lm = random_model(family)
    before = bits(lm)
    act = LinearAcT.fit(lm, pairs, strength=1, sequential=sequential)
    assert same_bits(before, lm)
    assert not any(module._forward_hooks for module in lm.hf.modules())
    maps = []
    for layer in range(lm.n_layers):
        toxic = mean_writes(lm, pairs.toxic, layer, maps if sequential else ())
        neutral = mean_writes(lm, pairs.neutral, layer)
        maps.append([fit_by_hand(toxic[:, j], neutral[:, j]) for j in range(lm.d_model)])
        expected = torch.tensor(np.array(maps[-1]), dtype=torch.float32)
        fit = act.maps[layer]
        torch.testing.assert_close(
            torch.stack([fit.omega, fit.beta, fit.low, fit.high], 1), expected, rtol=5e-3, atol=1e-3
        )
    assert act.strength == 1
    assert act.record == {
        "sequential": sequential,
        "strength": 1,
        "texts": {"contrast": pairs.name, "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)},
    }
    assert act.fitted_on["fingerprint"] == lm.fingerprint


def test_the_output_of_a_layer_is_mapped_and_the_next_layer_reads_it(tiny):
    act = LinearAcT.fit(tiny, PAIRS, strength=1)
    with act.applied(tiny):
        after = mean_writes(tiny, TEXTS, 1)
    numbers = [
        [(m.omega[j].item(), m.beta[j].item(), m.low[j].item(), m.high[j].item()) for j in range(16)] for m in act.maps
    ]
    np.testing.assert_allclose(after, mean_writes(tiny, TEXTS, 1, numbers), rtol=1e-4, atol=1e-5)
    assert np.abs(after - mean_writes(tiny, TEXTS, 1)).max() > 1e-2


def test_it_is_the_same_on_both_trees(any_family):
    untouched = logits(any_family)[0]
    with LinearAcT.fit(any_family, PAIRS, strength=1).applied(any_family):
        hooked, plain = logits(any_family)
    # At the edge of the range a rounding error decides whether a value is mapped, so a few logits may differ.
    close = torch.isclose(hooked, plain, rtol=1e-3, atol=1e-3)
    assert close.float().mean() > 0.99
    assert (hooked - untouched).abs().max() > 1e-2
    torch.testing.assert_close(logits(any_family)[1], untouched, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_leaves_no_trace_after_an_exception_in_half_precision(dtype):
    lm = random_model("llama", dtype=dtype)
    before, act = bits(lm), LinearAcT.fit(lm, PAIRS, strength=1)
    with pytest.raises(KeyboardInterrupt), act.applied(lm):
        assert sum(bool(module._forward_hooks) for module in lm.hf.modules()) == lm.n_layers
        assert logits(lm)[1].dtype == dtype
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert all(not point.fwd_hooks for point in lm.hooked.hook_dict.values())
    assert not any(module._forward_hooks for module in lm.hf.modules())


def test_a_fit_that_is_interrupted_leaves_no_hook_behind(tiny, monkeypatch):
    real, calls = Transport.between, []

    def interrupted(*args):
        calls.append(1)
        return real(*args) if len(calls) == 1 else 1 / 0

    monkeypatch.setattr(Transport, "between", interrupted)
    with pytest.raises(ZeroDivisionError):
        LinearAcT.fit(tiny, PAIRS, strength=1)
    assert len(calls) == 2
    assert all(not point.fwd_hooks for point in tiny.hooked.hook_dict.values())
    assert not any(module._forward_hooks for module in tiny.hf.modules())


def test_a_budget_sets_the_strength_and_not_the_maps(tiny):
    whole = LinearAcT.fit(tiny, PAIRS, strength=1)
    act = LinearAcT.fit(tiny, PAIRS, budget=Budget(kl=1e-4), neutral=NEUTRAL)
    assert 0 < act.strength < 1
    assert act.record["strength"] == act.strength == act.config()["strength"]
    assert 0.9e-4 <= act.record["tuned_kl"] <= 1e-4
    for a, b in zip(act.maps, whole.maps, strict=True):
        assert torch.equal(a.omega, b.omega) and torch.equal(a.beta, b.beta)


def test_on_a_real_model_it_makes_toxic_text_less_likely_than_neutral_within_its_budget(lm, pairs, neutral):
    fitted_on, held_out = pairs.split(0.5)
    act = LinearAcT.fit(lm, fitted_on, neutral=neutral)

    def contrast():
        return mean_nll(lm, held_out.toxic) - mean_nll(lm, held_out.neutral)

    was, perplexity = contrast(), mean_nll(lm, neutral.tune)
    with act.applied(lm):
        assert contrast() > was
        rise = np.expm1(mean_nll(lm, neutral.tune) - perplexity)
    assert rise <= 0.01
    assert act.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-5)


def test_save_and_load(tiny, tmp_path):
    act = LinearAcT(LinearAcT.fit(tiny, PAIRS, strength=1).maps, strength=0.25)
    act.note_fit(tiny, {"sequential": True})
    act.save(tmp_path / "act")
    again = load_intervention(tmp_path / "act")
    assert type(again) is LinearAcT
    assert again.describe() == act.describe()
    with act.applied(tiny):
        expected = logits(tiny)
    with again.applied(tiny):
        torch.testing.assert_close(logits(tiny), expected, rtol=0, atol=0)
    assert repr(again) == "LinearAcT(2 layers, strength=0.25)"
    with pytest.raises(ToxlocError, match="has no form in the weights"):
        again.baked()


@pytest.mark.parametrize(
    ("pairs", "options", "words"),
    [
        (ContrastSet(TEXTS[:1], TEXTS[1:]), {}, "has 1 toxic text"),
        (ContrastSet(TEXTS[1:], TEXTS[:1]), {}, "has 1 neutral text"),
        (PAIRS, {"budget": -1}, "not -1"),
        (PAIRS, {"strength": 0}, "strength=0: it must be greater than 0"),
        (PAIRS, {"lam": 0.5}, "There is no setting 'lam'"),
    ],
)
def test_bad_arguments_of_the_fit(tiny, pairs, options, words):
    with pytest.raises(ToxlocError, match=words):
        LinearAcT.fit(tiny, pairs, **options)


def test_bad_arguments(tiny):
    fit = Transport(*torch.ones(4, 16))
    with pytest.raises(ToxlocError, match="needs a map for each layer"):
        LinearAcT([])
    for strength in (0, 1.5):
        with pytest.raises(ToxlocError, match=f"not {strength}"):
            LinearAcT([fit, fit], strength)
    with pytest.raises(ToxlocError, match="is for 1 layers of d_model=16; random-gpt2 has 2 of d_model=16"):
        LinearAcT([fit]).apply(tiny)
    with pytest.raises(ToxlocError, match="is for 2 layers of d_model=8"):
        LinearAcT([Transport(*torch.ones(4, 8))] * 2).apply(tiny)
