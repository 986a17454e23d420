import numpy as np
import pytest
import torch

import toxloc.models.batching
from benchmarks.families import random_hf, random_model, tokenizer
from tests.conftest import bits, same_bits
from tests.tensors import bytes_alive
from toxloc import ContrastSet, LogitLens, Meow2X, ToxlocError
from toxloc.localization import logit_lens as module
from toxloc.localization.difference_statistics import groups_of_pairs
from toxloc.localization.first_difference import first_differences
from toxloc.localization.logit_lens import BASELINES, logit_lens
from toxloc.localization.pair_batch import PairReader
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.loaded import LoadedModel

from .by_hand import ids_of
from .prefixes_by_hand import PAIRS, USABLE, prefix_and_tokens

NORMS = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
    "llama": "model.norm",
    "olmo2": "model.norm",
    "gemma2": "model.norm",  # caps its logits
    "granite": "model.norm",  # scales its logits
    "phi": "model.final_layernorm",  # its unembedding has a bias
    "mixtral": "model.norm",
}


@torch.no_grad()
def logits_by_hand(lm, ids, capped=True):
    """Return the logits [depths, pos, vocabulary] in float64: at the last depth those of the plain model."""
    out = lm.hf(input_ids=ids, output_hidden_states=True)
    norm, config = lm.hf.get_submodule(NORMS[lm.model_type]), lm.hf.config
    normed = torch.cat([norm(hidden) for hidden in out.hidden_states[:-1]] + [out.hidden_states[-1]])
    logits = lm.hf.get_output_embeddings()(normed).double() / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    if capped and cap:
        logits = cap * torch.tanh(logits / cap)
    if capped or not cap:
        torch.testing.assert_close(logits[-1], out.logits[0].double(), rtol=1e-5, atol=1e-5)
    return logits.numpy()


def pairs_by_hand(lm, pairs=PAIRS, usable=USABLE, capped=True):
    """Return the logits [n, depths, vocabulary] after every prefix, and the two tokens of every pair."""
    found = [prefix_and_tokens(lm, i, pairs) for i in usable]
    return np.stack([logits_by_hand(lm, ids, capped)[:, -1] for ids, _, _ in found]), [pair[1:] for pair in found]


def relative_by_hand(lm, baseline):
    """Return D minus the baseline [n, depths], by averaging D over the other positions one by one."""
    logits, tokens = pairs_by_hand(lm, capped=False)
    rows = []
    for j, (toxic, neutral) in enumerate(tokens):
        if baseline == "other_prefixes":
            others = [logits[i] for i in range(len(tokens)) if i != j]
        else:
            texts = [logits_by_hand(lm, ids_of(lm, text)[0][None], capped=False) for text in PAIRS.neutral]
            others = [text[:, k] for text in texts for k in range(1, text.shape[1] - 1)]
        rows.append(logits[j, :, toxic] - logits[j, :, neutral])
        rows[-1] = rows[-1] - np.mean([other[:, toxic] - other[:, neutral] for other in others], axis=0)
    return np.array(rows)


@pytest.mark.parametrize("family", sorted(NORMS))
def test_every_depth_equals_the_plain_model_with_its_final_norm(family):
    lm = random_model(family)
    logits, tokens = pairs_by_hand(lm)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    toxic, neutral = (np.mean([log_p[i, :, pair[side]] for i, pair in enumerate(tokens)], axis=0) for side in (0, 1))
    lens = logit_lens(lm, PAIRS, "none", draws=0)
    assert (lens.n_pairs, lens.n_left_out, lens.n_layers) == (len(USABLE), 1, lm.n_layers)
    assert np.abs(np.diff(toxic - neutral)).max() > 0.01
    for values, expected in ((lens.toxic, toxic), (lens.neutral, neutral), (lens.difference, toxic - neutral)):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lens.step, np.diff(toxic - neutral), rtol=1e-3, atol=2e-4)
    for baseline in ("neutral", "other_prefixes"):
        relative = logit_lens(lm, PAIRS, baseline, draws=0)
        np.testing.assert_allclose(relative.difference, relative_by_hand(lm, baseline).mean(0), rtol=1e-4, atol=2e-4)
        np.testing.assert_allclose(relative.toxic, toxic, rtol=1e-4, atol=1e-4)


def test_the_last_depth_is_the_log_probability_difference_of_the_model(any_family):
    usable = first_differences(any_family, PAIRS).usable
    with torch.no_grad():
        reader = PairReader(any_family, usable, "zero", "first", skip_first=False)
        exact = reader.batch(list(range(len(usable)))).difference().mean().item()
    assert logit_lens(any_family, PAIRS, "none", draws=0).difference[-1] == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_intervals_and_p_values_are_those_of_the_values_of_single_pairs(tiny):
    """Of the other prefixes, both means are subtracted within each pair; the draws are repeated by hand."""
    lens = logit_lens(tiny, PAIRS, "other_prefixes", draws=200, seed=3)
    plain = logit_lens(tiny, PAIRS, "none", draws=200, seed=3)
    logits, tokens = pairs_by_hand(tiny)
    scores = np.array([[logits[i, :, t] - logits[i, :, n] for t, n in tokens] for i in range(len(tokens))])
    own = scores[np.arange(4), np.arange(4)]  # [pair, depth]; scores: [prefix, pair, depth]
    centred = own - scores.mean(0) - scores.mean(1) + scores.mean((0, 1))
    for result, values in ((plain, own), (lens, centred * 4 / 3)):
        for changed, u, mean in (
            (values, result.uncertainty, result.difference),
            (np.diff(values), result.step_uncertainty, result.step),
        ):
            check_draws(changed, u, mean, seed=3, draws=200)


def check_draws(values, u, mean, seed, draws):
    ordered = np.empty_like(values)
    ordered[groups_of_pairs(4)] = values  # each pair is a group
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-3, atol=1e-4)
    counts = np.random.default_rng([seed, 1]).multinomial(4, np.full(4, 1 / 4), size=draws)
    low, high = np.quantile(counts @ ordered / 4, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(u.low, 2 * mean - high, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(u.high, 2 * mean - low, rtol=1e-3, atol=1e-3)
    signs = np.where(np.random.default_rng([seed, 2]).random((draws, 4)) < 0.5, 1, -1)
    null = signs @ ordered / 4
    sd = np.sqrt((null**2).mean(0))
    largest = np.abs(null / sd).max(1)
    expected = (1 + 2 * (largest[:, None] >= np.abs(mean / sd) - 1e-5).sum(0)) / (1 + 2 * draws)
    np.testing.assert_allclose(u.p_adjusted, expected, atol=0.02)


def test_a_token_that_is_likelier_everywhere_is_likelier_only_without_a_baseline():
    lm = random_model("phi")
    before = {baseline: logit_lens(lm, PAIRS, baseline, draws=0).difference for baseline in BASELINES}
    rise = torch.zeros(lm.d_vocab)
    for i in USABLE:
        _, toxic, _ = prefix_and_tokens(lm, i)
        rise[toxic] = 3.0
    lm.hf.lm_head.bias.data += rise
    for baseline, expected in (("none", 3.0), ("neutral", 0.0), ("other_prefixes", 0.0)):
        change = logit_lens(lm, PAIRS, baseline, draws=0).difference - before[baseline]
        np.testing.assert_allclose(change, expected, atol=1e-4)


@pytest.mark.parametrize("baseline", ["none", "other_prefixes"])
def test_swapping_the_texts_changes_the_sign(tiny, baseline):
    lens = logit_lens(tiny, PAIRS, baseline, draws=50)
    swapped = logit_lens(tiny, ContrastSet(PAIRS.neutral, PAIRS.toxic, paired=True), baseline, draws=50)
    np.testing.assert_allclose(swapped.difference, -lens.difference, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swapped.uncertainty.low, -lens.uncertainty.high, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(swapped.toxic, lens.neutral, rtol=1e-5)


def test_a_model_without_transformerlens_gives_the_same(tiny):
    plain = LoadedModel.from_hf(random_hf("gpt2"), tokenizer(), "modules", hooks="modules")
    for baseline in BASELINES:
        expected = logit_lens(tiny, PAIRS, baseline, draws=0).difference
        np.testing.assert_allclose(logit_lens(plain, PAIRS, baseline, draws=0).difference, expected, atol=1e-5)


def test_an_applied_intervention_counts(tiny):
    """Scaling the keys of an MLP gives the same as scaling its W_out, and only later depths change."""
    before = logit_lens(tiny, PAIRS, draws=0).difference
    found = []
    for mode in ("hooks", "weights"):
        with Meow2X(layers=[1], scale=0.0, mode=mode).applied(tiny):
            found.append(logit_lens(tiny, PAIRS, draws=0).difference)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0][:2], before[:2], rtol=1e-6)
    assert abs(found[0][2] - before[2]) > 1e-3


def test_batches_do_not_change_the_result_and_the_model_is_unchanged(tiny, monkeypatch):
    weights = bits(tiny)
    whole = [logit_lens(tiny, PAIRS, baseline) for baseline in BASELINES]
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    for lens, baseline in zip(whole, BASELINES, strict=True):
        single = logit_lens(tiny, PAIRS, baseline)
        np.testing.assert_allclose(single.difference, lens.difference, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(single.uncertainty.low, lens.uncertainty.low, rtol=1e-3, atol=1e-4)
    assert same_bits(weights, tiny)


def test_memory_does_not_grow_with_the_number_of_pairs(tiny, monkeypatch):
    """All tensors together take as many bytes at the last batch of prefixes, and of neutral texts, as at the third."""
    calls, alive = [], []
    original = module.hidden_by_depth

    def watched(*args):
        calls.append(None)
        if len(calls) in (3, 5, 8, 10):
            alive.append(bytes_alive())
        return original(*args)

    monkeypatch.setattr(module, "hidden_by_depth", watched)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    logit_lens(tiny, ContrastSet(["You are a fool"] * 5, ["You are a friend"] * 5, paired=True))
    third, last, third_neutral, last_neutral = alive
    assert third == last
    assert third_neutral == last_neutral


def made(difference, p_adjusted, step=None):
    difference, p = np.array(difference), np.array(p_adjusted)
    zeros = np.zeros(len(p))
    u = Uncertainty(difference - 1, difference + 1, zeros, zeros, zeros, p, p)
    step = np.diff(difference) if step is None else step
    return LogitLens("m", "neutral", 9, 1, zeros, zeros, difference, step, u, u.at(range(1, len(p))))


@pytest.mark.parametrize(
    ("difference", "p", "first"),
    [
        ([-1.0, 1.0, 2.0, 3.0, 4.0], [0.01, 0.2, 0.01, 0.04, 0.01], 2),
        ([-1.0, 1.0, 2.0, 3.0, 4.0], [0.01, 0.01, 0.01, 0.05, 0.01], 4),
        ([1.0, 1.0, -2.0, 3.0, 4.0], [0.01] * 5, 3),
        ([1.0] * 5, [0.01] * 5, 0),
        ([1.0, 1.0, 1.0, 1.0, 1.0], [0.01, 0.01, 0.01, 0.01, 0.06], None),
        ([1.0, 1.0, 1.0, 1.0, -1.0], [0.01] * 5, None),
    ],
)
def test_the_first_depth_is_followed_by_significant_positive_depths_only(difference, p, first):
    lens = made(difference, p)
    assert lens.first_depth == first
    assert lens.first_relative_depth == (None if first is None else first / 4)


def test_the_repr_is_a_sentence():
    assert repr(made([-1.0, 2.0, 3.0], [0.01] * 3)) == (
        "LogitLens(m, 9 pairs, baseline neutral: the toxic word is significantly likelier from depth 1 of 2 on; at the "
        "output D is +3.00 nats [+2.00, +4.00])"
    )
    assert "there is no depth from which on" in repr(made([1.0, 2.0], [0.5, 0.5]))


def test_the_table_and_the_figure(tiny):
    lens = logit_lens(tiny, PAIRS, draws=50)
    table = lens.table()
    assert table.depth.tolist() == list(range(tiny.n_layers + 1))
    assert table.relative_depth.iloc[[0, -1]].tolist() == [0, 1]
    np.testing.assert_array_equal(table.difference, lens.difference)
    np.testing.assert_array_equal(table.step[1:], lens.step)
    np.testing.assert_array_equal(table.p_adjusted, lens.uncertainty.p_adjusted)
    np.testing.assert_array_equal(table.step_p_adjusted[1:], lens.step_uncertainty.p_adjusted)
    without = logit_lens(tiny, PAIRS, draws=0)
    assert without.table()[["low", "p", "step_p_adjusted"]].isna().all(None)
    assert (without.first_depth, without.uncertainty, without.step_uncertainty) == (None, None, None)
    assert "without draws" in repr(without)
    assert list(without.figure().data[-1].y) == without.difference.tolist()


def test_errors_name_the_value_and_the_fix(tiny, unchecked):
    with pytest.raises(ToxlocError, match="baseline='mean': choose one of neutral, other_prefixes, none"):
        logit_lens(tiny, PAIRS, "mean")
    with pytest.raises(ToxlocError, match="draws=-1"):
        logit_lens(tiny, PAIRS, draws=-1)
    with pytest.raises(ToxlocError, match="not paired"):
        logit_lens(tiny, ContrastSet(PAIRS.toxic, PAIRS.neutral, paired=False))
    with pytest.raises(ToxlocError, match="no logit lens"):
        logit_lens(random_model("deepseek_v4"), PAIRS)
