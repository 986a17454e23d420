import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, random_model
from toxloc import Site, ToxlocError, attention_pattern, head_view
from toxloc.localization import head_view as module
from toxloc.models.batching import batches, encode
from toxloc.support.masking import mask

HEAD = (Site(1, "attention"), 1)
# The third text repeats a token, and the last has a single token.
SOME = [TEXTS[0], TEXTS[2], "The soup, the salt, the end.", "Go"]


def by_hand(lm, head, texts, by, skip_first):
    """Return roles, entropy, shares by token and shares by text from the pattern of each text, entry by entry."""
    roles, entropies, tokens, uniform, in_texts, n = np.zeros(4), [], defaultdict(float), defaultdict(float), {}, 0
    for index, text in enumerate(texts):
        pattern = attention_pattern(lm, head, text, by=by)
        ids, w = encode(lm, [text], 64)[0], pattern.weights
        if len(ids) < 2:
            continue
        n += 1
        total = sum(w[i, j] for i in range(1, len(ids)) for j in range(i + 1))
        shares, equal = np.zeros(len(ids)), np.zeros(len(ids))
        for i in range(1, len(ids)):
            for j in range(i + 1):
                shares[j] += w[i, j] / total
                equal[j] += 1 / (i + 1) / (len(ids) - 1)
                roles[0 if j == 0 else 1 if j == i - 1 else 2 if j == i else 3] += w[i, j] / total
        per_query = [[x / w[i].sum() for x in w[i, : i + 1]] for i in range(1, len(ids))]
        entropies.append(np.mean([-sum(x * math.log(x) for x in row if x > 0) for row in per_query]))
        for j in range(int(skip_first), len(ids)):
            tokens[ids[j]] += shares[j]
            uniform[ids[j]] += equal[j]
        in_texts[index] = (shares, equal)
    average = {token: (share / n, uniform[token] / n) for token, share in tokens.items()}
    return roles / n, np.mean(entropies), average, in_texts


@pytest.mark.parametrize("by", ["attention", "norm"])
@pytest.mark.parametrize("skip_first", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_views_equal_sums_over_the_patterns_of_single_texts(family, skip_first, by, monkeypatch):
    lm = random_model(family)
    lm.prepend_bos = False
    monkeypatch.setattr(module, "batches", lambda *args, **kwargs: batches(*args, **kwargs, tokens=24))
    first, view = head_view(lm, [(Site(0, "attention"), 0), HEAD], SOME, by=by, k=5, skip_first=skip_first)
    assert (first.site, first.head, view.site, view.head, view.by) == (Site(0, "attention"), 0, *HEAD, by)
    roles, entropy, tokens, in_texts = by_hand(lm, HEAD, SOME, by, skip_first)
    assert view.n_texts == 3
    np.testing.assert_allclose(list(view.roles.values()), roles, rtol=1e-4, atol=1e-6)
    assert view.entropy == pytest.approx(entropy, rel=1e-4)
    best = sorted(tokens, key=lambda token: -tokens[token][0])[:5]
    assert view.shown(masked=False) == [lm.tokenizer.decode([token]) for token in best]
    np.testing.assert_allclose([(s.share, s.uniform) for s in view.tokens], [tokens[t] for t in best], rtol=1e-4)
    assert list(view.texts) == [0, 1, 2]
    for index, sources in view.texts.items():
        shares, equal = in_texts[index]
        places = [int(skip_first) + place for place in np.argsort(-shares[int(skip_first) :])[:5]]
        assert [source.position for source in sources] == places
        ids = encode(lm, [SOME[index]], 64)[0]
        assert [source.token for source in sources] == [lm.tokenizer.decode([ids[place]]) for place in places]
        np.testing.assert_allclose([s.share for s in sources], shares[places], rtol=1e-4)
        np.testing.assert_allclose([s.uniform for s in sources], equal[places], rtol=1e-4)
    assert np.abs(roles - list(first.roles.values())).max() > 0.01


def test_tokens_are_counted_once_per_text(tiny):
    (view,) = head_view(tiny, [HEAD], [*SOME, "Salt, please."], k=1000)
    counts = {source.token: source.n_texts for source in view.tokens}
    assert counts[","] == 2 and counts[" the"] == 1
    assert sum(source.share for source in view.tokens) == pytest.approx(1 - view.roles["first"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_norms_are_the_lengths_of_what_a_head_writes_for_each_source(family):
    """If only one source is visible, a head writes its value: the weight of the first position is |z W_O| there."""
    lm = random_model(family)
    site, head = HEAD
    view, kept = lm.at(site), []
    pattern = attention_pattern(lm, HEAD, TEXTS[2], by="norm")
    with view.linear.register_forward_pre_hook(lambda module, args: kept.append(args[0])):
        lm.hf(input_ids=torch.tensor(encode(lm, [TEXTS[2]], 64)))
    z = kept[0][0, 0].flatten()[head * 8 : head * 8 + 8]
    W_O = (
        view.linear.weight[head * 8 : head * 8 + 8]
        if family == "gpt2"
        else view.linear.weight[:, head * 8 : head * 8 + 8].T
    )
    assert pattern.weights[0, 0] == pytest.approx((z @ W_O).norm().item(), rel=1e-4)
    attention = attention_pattern(lm, HEAD, TEXTS[2])
    ratios = pattern.weights[-1] / attention.weights[-1]
    np.testing.assert_allclose(pattern.weights, attention.weights * ratios, rtol=1e-4, atol=1e-7)
    assert ratios.std() > 0.1 * ratios.mean()


def test_a_pattern_is_that_of_its_head(tiny):
    patterns = [attention_pattern(tiny, (site, head), TEXTS[0]) for site in ("0.attention", HEAD[0]) for head in (0, 1)]
    assert [(p.site.layer, p.head) for p in patterns] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    weights = tiny.hf.eval()
    weights.set_attn_implementation("eager")
    ids = torch.tensor(encode(tiny, [TEXTS[0]], 64))
    expected = weights(input_ids=ids, output_attentions=True).attentions
    for pattern in patterns:
        np.testing.assert_allclose(pattern.weights, expected[pattern.site.layer][0, pattern.head], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(pattern.weights.sum(1), 1, rtol=1e-5)


def test_text_is_masked_when_it_is_shown(tiny):
    (view,) = head_view(tiny, [HEAD], ["You silly goose"], k=3)
    tiny.prepend_bos = False
    pattern = attention_pattern(tiny, HEAD, "You silly goose")
    assert "illy" not in repr(view) + repr(view.tokens) + repr(view.texts) + repr(pattern) + str(view.to_frame())
    assert "".join(pattern.shown()) == mask("You silly goose")
    assert "".join(pattern.shown(masked=False)) == "You silly goose"
    frame = view.to_frame(masked=False)
    assert list(frame.columns) == ["layer", "head", "token", "share", "uniform", "n_texts"]
    assert (frame["layer"] == 1).all() and list(frame["token"]) == [source.token for source in view.tokens]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(heads=[(3, 2)]), r"layer 3 has no attention heads; give a head as \(Site\(3, 'attention'\), 2\)"),
        (dict(heads=[("5.attention", 0)]), "There is no layer 5, attention in random-gpt2"),
        (dict(heads=[("1.attention", 2)]), "There is no head 2 in layer 1, attention"),
        (dict(by="value"), "by='value': choose one of attention, norm"),
        (dict(k=0), "k=0: give a whole number, 1 or more"),
        (dict(max_length=1), "No text has two tokens"),
        (dict(texts=[]), "No text has two tokens"),
    ],
)
def test_impossible_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ToxlocError, match=message):
        head_view(tiny, **{"heads": [HEAD], "texts": TEXTS} | arguments)


def test_a_model_whose_values_are_not_shown_has_attention_only():
    lm = random_model("gpt_neo")
    assert head_view(lm, [HEAD], TEXTS)[0].n_texts == len(TEXTS)
    with pytest.raises(ToxlocError, match=r"layer 1, attention of random-gpt_neo .*give by='attention'"):
        head_view(lm, [HEAD], TEXTS, by="norm")


def test_half_precision_models_have_views():
    (view,) = head_view(random_model("llama", dtype=torch.bfloat16), [HEAD], TEXTS, by="norm")
    assert sum(view.roles.values()) == pytest.approx(1)
