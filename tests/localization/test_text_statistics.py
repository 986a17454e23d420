"""Statistics and scores of routed experts, against plain autograd on the Hugging Face model, one text at a time."""

from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.families import EXPERTS, random_hf, tokenizer
from tests.conftest import TEXTS, random_model
from tests.localization.by_hand import ids_of
from toxloc import ContrastSet, DirectionalAblation, Meow2X, collect_contrast, localize
from toxloc.localization.score_table import SCORES
from toxloc.localization.text_statistics import collect
from toxloc.models.activations import keys_of, pooled
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site

FAMILIES = ("mixtral", "gpt_oss", "llama4_text", "jetmoe")  # of each layout one, with and without biases
GROUP = np.array([0, 1, 0, 1, 2])
PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4])


@cache
def model(family):
    return random_model(family)


def block_of_experts(lm):
    """The last layer with experts, and in the Hugging Face model its module that sums all experts."""
    layer = lm.sites("expert")[-1].layer
    return layer, lm.at(Site(layer, "expert", 0)).sum_module


def parameter_of(lm, layer):
    """W_out of all experts of a layer: [experts, d_in, d_model] for GPT-OSS and Llama 4, else its transpose."""
    block = lm.block(layer)
    return {
        "mixtral": lambda: block.mlp.experts.down_proj,
        "gpt_oss": lambda: block.mlp.experts.down_proj,
        "llama4_text": lambda: block.feed_forward.experts.down_proj,
        "jetmoe": lambda: block.mlp.output_linear.weight,
    }[lm.model_type]()


def routed_by_hand(mlp, x):
    """The experts of each token of x [tokens, d_model], their router weights, and their activations, by formulas."""
    name = type(mlp).__name__
    if name == "MixtralSparseMoeBlock":
        weights, index = (x @ mlp.gate.weight.T).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        gate_up = torch.einsum("td,efd->tef", x, mlp.experts.gate_up_proj)
        gate, up = gate_up.chunk(2, -1)
        return index, weights, F.silu(gate) * up
    if name == "GptOssMLP":
        values, index = (x @ mlp.router.weight.T + mlp.router.bias).topk(2)
        gate_up = torch.einsum("td,edf->tef", x, mlp.experts.gate_up_proj) + mlp.experts.gate_up_proj_bias
        gate, up = gate_up[..., ::2].clamp(max=7.0), gate_up[..., 1::2].clamp(-7.0, 7.0)
        return index, values.softmax(-1), (up + 1) * gate * torch.sigmoid(1.702 * gate)
    if name == "Llama4TextMoe":  # the router weights multiply the inputs
        scores = x @ mlp.router.weight.T
        index = scores.topk(2).indices
        scaled = x[:, None] * scores.sigmoid()[..., None]
        gate, up = torch.einsum("ted,edf->tef", scaled, mlp.experts.gate_up_proj).chunk(2, -1)
        return index, torch.ones(index.shape), F.silu(gate) * up
    values, index = (x @ mlp.router.layer.weight.T).topk(2)
    gate, up = torch.einsum("td,efd->tef", x, mlp.input_linear.weight).chunk(2, -1)
    return index, values.softmax(-1), F.silu(gate) * up


@cache
def by_hand(family, skip_first=False):
    """Statistics of the experts of the last layer, in the order of their numbers, and of the shared expert if any."""
    lm = model(family)
    layer, mlp = block_of_experts(lm)
    weight, n_experts = parameter_of(lm, layer), 4
    transposed = family in ("gpt_oss", "llama4_text")
    results = [{"G": 0.0, "keys": [], "deltas": [], "kept": [], "groups": [], "router": []} for _ in range(n_experts)]
    predicted = 0
    for i, text in enumerate(TEXTS):
        ids, seen = ids_of(lm, text), {}

        def keep(module, args, out, seen=seen):
            out = out[0] if isinstance(out, tuple) else out
            out.retain_grad()
            seen.update(x=args[0].detach().flatten(0, -2), out=out)

        handle = mlp.register_forward_hook(keep)
        weight.requires_grad_(True)
        logits = lm.hf(input_ids=ids, use_cache=False).logits[0, :-1]
        F.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
        handle.remove()
        gradient, weight.grad = weight.grad, None
        weight.requires_grad_(False)
        predicted += len(logits)
        delta = seen["out"].grad.flatten(0, -2)
        index, router, activations = routed_by_hand(mlp, seen["x"])
        for expert, result in enumerate(results):
            tokens, slot = torch.where(index == expert)
            result["G"] = result["G"] + (gradient[expert] if transposed else gradient[expert].T)
            result["keys"].append(activations[tokens, expert] * router[tokens, slot][:, None])
            result["router"].append(router[tokens, slot])
            result["deltas"].append(delta[tokens])
            result["kept"].append((tokens > 0) | (not skip_first))
            result["groups"].append(np.full(len(tokens), GROUP[i]))
    for expert, result in enumerate(results):
        for name in ("keys", "deltas", "kept", "router"):
            result[name] = torch.cat(result[name])
        result["groups"] = np.concatenate(result["groups"])
        result["G"] = result["G"] / predicted
        result["W"] = (weight[expert] if transposed else weight[expert].T).detach()
    return results, predicted


def read(family, skip_first, **options):
    lm = model(family)
    sites = [site for site in lm.sites("expert") if site.layer == block_of_experts(lm)[0]]
    return sites, collect(lm, TEXTS, sites=sites, skip_first=skip_first, group=GROUP, **options)


def near(value, expected, tolerance=1e-4):
    expected = torch.as_tensor(expected).to(value)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=tolerance * max(float(expected.abs().max()), 1e-6))


@pytest.mark.parametrize("family", FAMILIES)
def test_G_is_the_gradient_of_the_mean_nll_with_respect_to_the_parameter(family):
    sites, s = read(family, False)
    results, predicted = by_hand(family)
    assert s.n_predicted == predicted
    for site, expected in zip(sites, results, strict=True):
        near(s.G[site], expected["G"])
    assert sum(float(G.norm()) > 0 for G in s.G.values()) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_C_and_S_are_the_second_moments_over_the_real_tokens_that_are_routed_to_the_expert(family):
    sites, s = read(family, True, curvature=True)  # they always include the first position
    results, predicted = by_hand(family)
    for site, expected in zip(sites, results, strict=True):
        keys, deltas = expected["keys"], expected["deltas"]
        near(s.C[site], keys.T @ keys / max(1, len(keys)))
        near(s.S[site], deltas.T @ deltas / predicted)


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_moments_and_contributions_are_those_of_the_routed_tokens(family, skip_first):
    sites, s = read(family, skip_first)
    results, _ = by_hand(family, skip_first)
    lm, gathered = model(family), s.contributions
    for site, expected in zip(sites, results, strict=True):
        kept = expected["kept"]
        keys, deltas = expected["keys"][kept], expected["deltas"][kept]
        groups, router, W = expected["groups"][kept.numpy()], expected["router"][kept], expected["W"]
        assert s.routed[site] == s.keys[site].count == len(keys)
        if len(keys):
            near(s.keys[site].mean, keys.double().mean(0))
            near(s.keys[site].var, keys.double().var(0, correction=0))
        near(s.G[site], keys.T @ deltas / s.n_predicted)
        m = keys @ W
        bias = lm.at(site).bias
        whole = m if bias is None else m + router[:, None] * bias
        for group in range(3):
            mine = groups == group
            assert gathered.counts[site][group] == mine.sum()
            near(gathered.attribution[site][group], -(m * deltas)[mine].sum())
            near(gathered.outputs[site][group], whole[mine].sum(0))
            near(gathered.squares[site][group], (whole[mine] ** 2).sum(0))
            if family != "llama4_text":
                near(gathered.mass[site][group], router[mine].sum())
    assert sum(s.routed.values()) == 2 * s.n_tokens  # every token is routed to two experts


@pytest.mark.parametrize("family", EXPERTS)
def test_the_sketch_and_the_attribution_of_groups_add_up_to_those_of_the_gradient(family):
    lm = model(family)
    s = collect(lm, TEXTS, sites=lm.sites(), skip_first=False, group=GROUP)
    for site in lm.sites():
        G, W = s.G[site].double() * s.n_predicted, lm.W_out(site).double()
        near(s.contributions.attribution[site].sum(), -(G * W).sum(), 1e-3)
        assert len(s.contributions.sketch[site]) == 3
        d_in, d = W.shape
        if d_in <= 48 and d <= 48:  # the sketch is a rotation
            near(s.contributions.sketch[site].sum(0).norm(), G.norm())


@pytest.mark.parametrize("hooks", ["bridge", "modules"])
def test_a_shared_expert_has_the_same_statistics_alone_and_with_the_experts_that_are_added_to_it(hooks):
    """Llama 4 adds the outputs of the experts to that of the shared expert in place."""
    lm = LoadedModel.from_hf(random_hf("llama4_text"), tokenizer(), hooks=hooks)
    shared = Site(1, "shared_expert")
    for sites in ([shared], lm.sites()):
        s = collect(lm, TEXTS, sites=sites, skip_first=False, group=GROUP)
        expected = -(s.G[shared] * lm.W_out(shared)).sum() * s.n_predicted
        near(s.contributions.attribution[shared].sum(), expected)


def idle_experts(lm, texts):
    """The experts to which no token is routed, not even the first of a text."""
    s = collect(lm, texts, sites=lm.sites("expert"), skip_first=False)
    return [site for site in lm.sites("expert") if s.routed[site] == 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_without_tokens_have_zeros_and_no_nan(family):
    lm = random_model(family, num_local_experts=24)
    sites = lm.sites("expert")
    s = collect_contrast(lm, ContrastSet(["No."], ["Yes."]), sites=sites, curvature=True, reliance=True, peaks=True)
    idle = idle_experts(lm, ["No.", "Yes."])
    assert 0 < len(idle) < len(sites)
    for site in sites:
        zeros = [s.G(site), s.C[site], s.S[site], s.toxic.S[site]]
        zeros += [moment for side in (s.toxic, s.neutral) for moment in (side.keys[site].mean, side.keys[site].var)]
        for side in (s.toxic, s.neutral):
            sums = side.contributions
            zeros += [getattr(sums, name)[site] for name in ("outputs", "squares", "attribution", "sketch", "mass")]
            zeros.append(torch.from_numpy(sums.peaks.at(site)[0]))
        assert all(values.isfinite().all() for values in zeros)
        if site in idle:
            assert s.routed(site) == s.toxic.routed[site] == 0
            assert not any(values.any() for values in zeros)


def test_an_idle_expert_has_scores_of_zero_and_finite_intervals():
    lm = random_model("mixtral", num_local_experts=24)
    pairs = ContrastSet(["No no yes."] * 3, ["No no no."] * 3, paired=True)
    loc = localize(lm, pairs, list(SCORES), parts=("expert",), draws=20)
    idle = [loc.sites("expert").index(site) for site in idle_experts(lm, ["No no yes.", "No no no."])]
    assert idle
    for score in SCORES:
        assert np.isfinite(loc.layer_scores(score)).all(), score
        assert np.isfinite(loc.neuron_scores(score)).all(), score
    for score in set(SCORES) - {"auroc", "combined", "gradient_calibrated"}:
        assert not loc.layer_scores(score)[idle].any(), score
        assert not loc.neuron_scores(score)[idle].any(), score
    assert (loc.layer_scores("auroc")[idle] == 0.5).all()
    table = loc.table()
    assert np.isfinite(table[table.score == "attribution"][["low", "high", "p"]].to_numpy()).all()


@pytest.mark.parametrize("family", EXPERTS)
def test_every_expert_is_localized(family):
    lm = model(family)
    loc = localize(lm, PAIRS, ("attribution",), parts=("expert",), draws=0)
    layers = sorted({site.layer for site in lm.sites("expert")})
    assert loc.sites() == tuple(Site(layer, "expert", expert) for layer in layers for expert in range(4))
    values = loc.site_scores("attribution")
    assert loc.top_sites("attribution", 1) == [max(values, key=values.get)]
    units = loc.neuron_scores("attribution")
    assert units.shape == (len(loc.sites()), lm.d_mlp if family not in ("deepseek_v3", "llama4_text") else 24)
    np.testing.assert_allclose(units.sum(1), loc.layer_scores("attribution"), rtol=1e-3, atol=1e-5)
    top = loc.top_units("attribution", 3)
    best = np.unravel_index(units.argmax(), units.shape)
    assert top[0] == (loc.sites()[best[0]], best[1])
    assert [units[loc.sites().index(site), unit] for site, unit in top] == sorted(units.ravel())[:-4:-1]
    table = loc.neuron_table("attribution", 3)
    assert list(zip(table.layer, table.expert, table.neuron, strict=True)) == [
        (site.layer, site.expert, unit) for site, unit in top
    ]


def test_a_localization_of_experts_is_saved_and_loaded(tmp_path):
    lm = model("deepseek_v3")  # the MLP of its first layer is wider than its experts
    loc = localize(lm, PAIRS, ("attribution", "activation"), parts=lm.parts, draws=10)
    loc.save(tmp_path / "loc")
    again = type(loc).load(tmp_path / "loc")
    assert again.sites() == loc.sites()
    assert set(loc.parts) == {"mlp", "attention", "expert", "shared_expert"}
    for part in loc.parts:
        np.testing.assert_array_equal(again.neuron_scores("attribution", part), loc.neuron_scores("attribution", part))
    assert again.table().equals(loc.table())


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_activations_of_experts_are_those_of_each_text_alone(family, pool):
    """Where no token of a text is routed to the expert, they are 0; the mean is over all tokens of the text."""
    lm = model(family)
    layer, mlp = block_of_experts(lm)
    places = [keys_of(lm, Site(layer, "expert", expert)) for expert in range(4)]
    rows = pooled(lm, TEXTS, places, pool)
    for i, text in enumerate(TEXTS):
        seen = []
        handle = mlp.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2)))
        with torch.no_grad():
            lm.hf(input_ids=ids_of(lm, text))
        handle.remove()
        index, router, activations = routed_by_hand(mlp, seen[0])
        for expert in range(4):
            tokens, slot = torch.where(index == expert)
            tokens, slot = tokens[tokens > 0], slot[tokens > 0]
            keys = activations[tokens, expert] * router[tokens, slot][:, None]
            expected = torch.zeros(keys.shape[1])
            if len(keys):
                expected = keys.amax(0) if pool == "max" else keys.sum(0) / (len(index) - 1)
            near(rows[expert][i], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_passes_through_the_hooks_of_an_intervention_on_the_output_of_an_expert(family):
    lm = model(family)
    sites = lm.sites("expert")
    site = max(sites, key=lambda site: float(collect(lm, TEXTS, sites=sites).G[site].norm()))
    plain = {}
    for mode in ("hooks", "weights"):
        with Meow2X(layers=[site], scale=0.25, mode=mode).applied(lm):
            plain[mode] = collect_contrast(lm, PAIRS, sites=sites)
    for other in sites:
        near(plain["hooks"].G(other), plain["weights"].G(other) * (0.25 if other == site else 1))
    r = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).norm()
    with DirectionalAblation(r, [site.layer], 0.5).applied(lm):
        hooked = collect_contrast(lm, PAIRS, sites=sites)
    with DirectionalAblation(r, [site.layer], 0.5, mode="weights").applied(lm):
        edited = collect_contrast(lm, PAIRS, sites=sites)
    project = torch.eye(16) - 0.5 * torch.outer(r, r)
    for other in [other for other in sites if other.layer == site.layer]:
        near(hooked.G(other), edited.G(other) @ project)
