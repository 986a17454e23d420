import numpy as np
import pytest
import torch

from benchmarks.families import DENSE
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, NeutralText, ToxlocError, collect_contrast, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.methods.ablation import DirectionalAblation
from toxloc.models.sites import Site

from .test_steering import FAMILIES, PAIRS, after_block, logits, means, n_hooks

BARE = sorted(set(DENSE) - {"gemma2", "gemma3_text", "olmo2"})
R = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).norm()


def written(lm, layer):
    """Return what attention and MLP of a layer of the plain model add to the residual stream."""
    seen = []
    handles = [
        lm.contribution(Site(layer, part)).register_forward_hook(lambda module, args, out: seen.append(out))
        for part in ("attention", "mlp")
    ]
    after_block(lm, TEXTS[0], layer)
    for handle in handles:
        handle.remove()
    return [x.reshape(-1, lm.d_model) for x in seen]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direction_is_that_of_the_layer_where_the_sides_lie_furthest_apart(family):
    lm = random_model(family)
    directions, separation = {}, {}
    for layer in (0, 1):
        T, N = means(lm, PAIRS.toxic, layer), means(lm, PAIRS.neutral, layer)
        d = T.mean(0) - N.mean(0)
        directions[layer] = d / np.sqrt(d @ d)
        on_T, on_N = T @ directions[layer], N @ directions[layer]
        pooled = (len(T) * on_T.var() + len(N) * on_N.var()) / (len(T) + len(N))
        separation[layer] = (on_T.mean() - on_N.mean()) / pooled**0.5
    best = max(separation, key=separation.get)
    ablation = DirectionalAblation.fit(lm, PAIRS, strength=1)
    assert ablation.record["read_after"] == best
    for layer in (0, 1):
        assert ablation.record["separation"][str(layer)] == pytest.approx(separation[layer], rel=1e-3)
        given = DirectionalAblation.fit(lm, PAIRS, layer=layer, strength=1)
        np.testing.assert_allclose(given.direction, directions[layer], atol=1e-5)
    np.testing.assert_allclose(ablation.direction, directions[best], atol=1e-5)
    assert (ablation.strength, ablation.layers, ablation.mode) == (1, [0, 1], "hooks")


def test_by_default_the_last_fifth_of_the_layers_is_left_alone():
    lm = random_model("gpt2", n_layer=11)
    ablation = DirectionalAblation.fit(lm, PAIRS, strength=1)
    assert ablation.layers == list(range(9))
    assert set(ablation.record["separation"]) == set(map(str, range(9)))
    assert DirectionalAblation.fit(lm, PAIRS, layers=[10, 3], layer=10, strength=1).layers == [3, 10]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_strength_is_the_share_of_r_that_writes_lose_on_both_trees(family, strength):
    lm = random_model(family)
    before, untouched, hooks = written(lm, 0), logits(lm)[0], n_hooks(lm)
    with DirectionalAblation(R, [0], strength).applied(lm):
        attention, _ = written(lm, 0)
        hooked, plain = logits(lm)
    np.testing.assert_allclose(attention, before[0] @ (np.eye(16) - strength * np.outer(R, R)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
    assert (hooked - untouched).abs().max() > 1e-3
    assert n_hooks(lm) == hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_strength_the_stream_keeps_only_what_the_embedding_writes_along_r(family):
    lm = random_model(family)
    seen = []
    handle = lm.block(0).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    after_block(lm, TEXTS[0], 0)
    handle.remove()
    embedded = seen[0].reshape(-1, 16) @ R
    assert (after_block(lm, TEXTS[0], 1) @ R - embedded).abs().max() > 0.1
    with DirectionalAblation(R, [0, 1]).applied(lm):
        torch.testing.assert_close(after_block(lm, TEXTS[0], 1) @ R, embedded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BARE)
def test_hooks_equal_weights_on_both_trees(family):
    lm = random_model(family)
    before, own_hooks = bits(lm), n_hooks(lm)
    ablation = DirectionalAblation(R, [0, 1], 0.7)
    with ablation.applied(lm):
        assert same_bits(before, lm)
        hooks = logits(lm)
    with ablation.baked().applied(lm):
        weights = logits(lm)
        n_edited = sum(not torch.equal(a, b) for a, b in zip(before, lm.hf.parameters(), strict=True))
        assert n_hooks(lm) == own_hooks
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-4, atol=1e-4)
    biases = sum(
        m.bias is not None for i in (0, 1) for m in (lm.down_projection(i), lm.down_projection(Site(i, "attention")))
    )
    assert n_edited == 4 + biases
    assert same_bits(before, lm)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_where_a_norm_follows_there_is_no_form_in_the_weights(family):
    lm = random_model(family)
    with pytest.raises(ToxlocError, match=r'a norm follows attention and MLP.*use mode="hooks"'):
        DirectionalAblation.fit(lm, PAIRS, mode="weights")
    with pytest.raises(ToxlocError, match='use mode="hooks"'):
        DirectionalAblation(R, [0]).baked().apply(lm)
    assert lm.interventions == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_an_exception_leaves_no_trace(mode, dtype):
    lm = random_model("gpt2", dtype=dtype)
    before, hooks = bits(lm), n_hooks(lm)
    ablation = DirectionalAblation.fit(lm, PAIRS, mode=mode, strength=1)
    with pytest.raises(KeyboardInterrupt), ablation.applied(lm):
        assert same_bits(before, lm) == (mode == "hooks")
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert lm.interventions == []
    assert n_hooks(lm) == hooks


def test_gradients_pass_through_the_hooks_as_through_the_weights(tiny):
    ablation = DirectionalAblation.fit(tiny, PAIRS, strength=1)
    gradients = []
    for form in (ablation, ablation.baked()):
        with form.applied(tiny):
            gradients.append(collect_contrast(tiny, PAIRS).G(0))
    assert not torch.allclose(collect_contrast(tiny, PAIRS).G(0), gradients[0], rtol=1e-2)
    away = torch.eye(16) - torch.outer(ablation.direction, ablation.direction)
    # With hooks the projection follows W_out, so its gradient has no part along r. That of edited weights may have.
    torch.testing.assert_close(gradients[0] @ away, gradients[1] @ away, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[0] @ away, rtol=1e-3, atol=1e-5)


def test_fit_keeps_the_budget(lm, pairs, neutral):
    before = bits(lm)
    ablation = DirectionalAblation.fit(lm, pairs, mode="weights", budget=0.01, neutral=neutral)
    assert same_bits(before, lm)
    assert ablation.layers == list(range(7))
    base = mean_nll(lm, neutral.tune)
    with ablation.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert 0.008 <= rise <= 0.01
    assert 0 < ablation.strength < 1
    assert ablation.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-5)
    assert ablation.fitted_on["fingerprint"] == lm.fingerprint


def test_save_and_load(tiny, tmp_path):
    ablation = DirectionalAblation.fit(
        tiny, PAIRS, budget=0.5, mode="weights", neutral=NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[:1])
    )
    ablation.save(tmp_path / "a")
    again = load_intervention(tmp_path / "a")
    assert isinstance(again, DirectionalAblation)
    assert again.describe() == ablation.describe()
    with ablation.applied(tiny):
        expected = logits(tiny)[0]
    with again.applied(tiny):
        assert torch.equal(logits(tiny)[0], expected)
    assert again.in_weights and DirectionalAblation.bakeable


def test_a_baked_ablation_keeps_its_record(tiny):
    ablation = DirectionalAblation.fit(tiny, PAIRS, strength=1)
    assert not ablation.in_weights
    assert ablation.baked().describe() == ablation.describe() | {"mode": "weights"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(layer=2), "no layer 2 in random-gpt2; it has layers 0 to 1"),
        (dict(layers=[0, 7]), "no layer 7"),
        (dict(layers=[], strength=1), "leaves nothing to ablate"),
        (dict(mode="sideways"), "mode='sideways': it must be 'hooks' or 'weights'"),
        (dict(budget=0.0), "not 0.0"),
        (dict(budget=None), "budget=None is not a budget"),
        (dict(strength=1.5), "strength=1.5"),
    ],
)
def test_bad_arguments_of_fit(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        DirectionalAblation.fit(tiny, PAIRS, **arguments)


def test_one_text_per_side_needs_a_layer(tiny):
    pairs = ContrastSet(TEXTS[:1], TEXTS[1:2])
    with pytest.raises(ToxlocError, match="give layer="):
        DirectionalAblation.fit(tiny, pairs)
    assert DirectionalAblation.fit(tiny, pairs, layer=0, strength=1).layers == [0, 1]


@pytest.mark.parametrize(
    ("direction", "strength", "words"),
    [(torch.ones(16), 1.0, "length 1, not 4"), (R, 0.0, "not 0.0"), (R, 1.1, "not 1.1")],
)
def test_bad_arguments(direction, strength, words):
    with pytest.raises(ToxlocError, match=words):
        DirectionalAblation(direction, [0], strength)


def test_models_of_another_shape_are_refused(tiny):
    with pytest.raises(ToxlocError, match="is for d_model=2; random-gpt2 has d_model=16"):
        DirectionalAblation(torch.tensor([0.6, 0.8]), [0]).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 4"):
        DirectionalAblation(R, [4]).apply(tiny)
    assert tiny.interventions == []
