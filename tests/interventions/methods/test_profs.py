import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.methods.profs import ProFS

from .test_steering import FAMILIES, logits, means

FOOLS = ["You fool.", "He is a liar and a cheat.", "What a stupid thing to say!", "Shut your mouth, you rat."]
PAIRS = ContrastSet(FOOLS, TEXTS[1:], paired=True)


def projection(lm, pairs, layer, k):
    """Sum of V_i V_iᵀ, computed from eigenvectors of XᵀX and DᵀD."""
    X, Y = means(lm, pairs.toxic, layer), means(lm, pairs.neutral, layer)
    mu = np.linalg.eigh(X.T @ X)[1][:, -1]
    D = (X - np.outer(X @ mu, mu)) - (Y - np.outer(Y @ mu, mu))
    V = np.linalg.eigh(D.T @ D)[1][:, -k:]
    return V @ V.T


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [1, 3])
def test_W_out_of_the_upper_half_is_projected_by_hand_and_nothing_else(family, k):
    lm = random_model(family)
    before = bits(lm)
    profs = ProFS.fit(lm, PAIRS, strength=1, k=k)
    assert same_bits(before, lm)
    W = lm.W_out(1).double().numpy().copy()
    P = projection(lm, PAIRS, 1, k)
    with profs.applied(lm):
        np.testing.assert_allclose(lm.W_out(1), W @ (np.eye(16) - P), rtol=1e-3, atol=1e-4)
        changed = [not torch.equal(a, b) for a, b in zip(before, lm.hf.parameters(), strict=True)]
        hooked, plain = logits(lm)
    assert sum(changed) == 1  # neither b_out nor the lower layer
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
    assert same_bits(before, lm)


def test_the_upper_half_is_that_of_the_blocks():
    assert list(ProFS.fit(random_model("gpt2", n_layer=5), PAIRS, strength=1, k=1).directions) == [2, 3, 4]


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_the_strength_is_the_share_of_the_output_along_V_that_is_removed(tiny, strength):
    V = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()
    along = tiny.W_out(0) @ V.T
    across = tiny.W_out(0) - along @ V
    with ProFS({0: V}, strength).applied(tiny):
        torch.testing.assert_close(tiny.W_out(0) @ V.T, (1 - strength) * along, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tiny.W_out(0) - tiny.W_out(0) @ V.T @ V, across, rtol=1e-4, atol=1e-5)


def test_unpaired_texts_are_paired_at_random_by_the_seed(tiny):
    loose = ContrastSet(FOOLS[:3], TEXTS)

    def P(pairs, seed=0):
        V = ProFS.fit(tiny, pairs, strength=1, k=1, seed=seed).directions[1]
        return V.T @ V

    assert ProFS.fit(tiny, loose, strength=1, k=1).record["n_pairs"] == 3
    assert torch.equal(P(loose, 1), P(loose, 1))
    assert not torch.allclose(P(loose, 1), P(loose, 2), atol=1e-3)
    assert torch.equal(P(PAIRS, 1), P(PAIRS, 2))


def test_fit_records_the_share_of_the_difference_that_it_removes(tiny):
    X, Y = means(tiny, PAIRS.toxic, 1), means(tiny, PAIRS.neutral, 1)
    mu = np.linalg.svd(X)[2][0]
    D = (X - Y) @ (np.eye(16) - np.outer(mu, mu))
    expected = np.square(D @ projection(tiny, PAIRS, 1, 2)).sum() / np.square(D).sum()
    assert ProFS.fit(tiny, PAIRS, strength=1).record["explained"] == {"1": pytest.approx(expected, rel=1e-4)}


def test_fit_keeps_the_budget(lm, pairs, neutral):
    before = bits(lm)
    profs = ProFS.fit(lm, pairs, budget=0.001, neutral=neutral)
    assert same_bits(before, lm)
    assert list(profs.directions) == [4, 5, 6, 7]
    base = mean_nll(lm, neutral.tune)
    with profs.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert 0.0008 <= rise <= 0.001
    assert 0 < profs.strength < 1
    assert profs.record["strength"] == profs.strength
    assert profs.fitted_on["fingerprint"] == lm.fingerprint


def test_a_strength_of_one_and_a_generous_budget_both_give_the_papers_form(tiny):
    text = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[:1])
    free, generous = ProFS.fit(tiny, PAIRS, strength=1), ProFS.fit(tiny, PAIRS, budget=9.0, neutral=text)
    assert free.strength == generous.strength == 1
    assert (free.record.get("evaluations"), generous.record["evaluations"]) == (None, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit_after_an_exception(dtype):
    lm = random_model("llama", dtype=dtype)
    before = bits(lm)
    profs = ProFS.fit(lm, PAIRS, strength=1)
    with pytest.raises(KeyboardInterrupt), profs.applied(lm):
        assert not same_bits(before, lm)
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert lm.interventions == []


def test_save_and_load_the_directions_alone(tiny, tmp_path):
    profs = ProFS.fit(tiny, PAIRS, budget=0.5, neutral=NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[:1]))
    profs.save(tmp_path / "p")
    again = load_intervention(tmp_path / "p")
    assert isinstance(again, ProFS)
    assert again.describe() == profs.describe()
    assert {name: tuple(V.shape) for name, V in load_file(tmp_path / "p" / "tensors.safetensors").items()} == {
        "1": (2, 16)
    }
    with profs.applied(tiny):
        expected = logits(tiny)[0]
    with again.applied(tiny):
        assert torch.equal(logits(tiny)[0], expected)
    assert again.in_weights and again.baked() is again and ProFS.bakeable


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(k=0), "k=0: it must be greater than or equal to 1"),
        (dict(k=5), r"k=5 .* 4 pairs and d_model=16 allow 1 to 4"),
        (dict(strength=2), "strength=2: it must be less than or equal to 1"),
        (dict(budget=-0.1), "not -0.1"),
    ],
)
def test_bad_arguments_of_fit(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        ProFS.fit(tiny, PAIRS, **arguments)


def test_sides_that_differ_in_too_few_directions(tiny):
    with pytest.raises(ToxlocError, match="differ in fewer than k=2 directions"):
        ProFS.fit(tiny, ContrastSet(FOOLS[:3], [*FOOLS[:2], TEXTS[1]], paired=True))


@pytest.mark.parametrize(
    ("directions", "strength", "words"),
    [
        ({}, 1.0, "at least one layer"),
        ({0: 2 * torch.eye(16)[:1]}, 1.0, "those of layer 0 are not"),
        ({0: torch.eye(16)[:1], 1: torch.eye(16)[[2, 2]]}, 1.0, "those of layer 1 are not"),
        ({0: torch.full((1, 16), torch.nan)}, 1.0, "those of layer 0 are not"),
        ({0: torch.eye(16)[:1]}, 0.0, "not 0.0"),
        ({0: torch.eye(16)[:1]}, 1.5, "not 1.5"),
    ],
)
def test_bad_arguments(directions, strength, words):
    with pytest.raises(ToxlocError, match=words):
        ProFS(directions, strength)


def test_models_of_another_shape_are_refused(tiny):
    with pytest.raises(ToxlocError, match="is for d_model=8; random-gpt2 has d_model=16"):
        ProFS({0: torch.eye(8)[:2]}).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 3"):
        ProFS({3: torch.eye(16)[:2]}).apply(tiny)
    assert tiny.interventions == []
