"""Compare every method with its published formula, implemented in numpy on activations of the plain GPT-2.

A float64 copy of the Hugging Face model reads the texts one by one, with hooks defined in this file. The formulas use
no batches, hooks, statistics or linear algebra of toxloc.
"""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tests.conftest import TEXTS, random_model
from toxloc import TRNE, AurA, ContrastSet, Damp, DirectionalAblation, Meow2X, NeutralText, ProFS, Steering
from toxloc.interventions.methods.linear_act import LinearAcT
from toxloc.interventions.methods.value_vector import ValueVector
from toxloc.models.sites import Site

LAYERS = 4
PAIRS = ContrastSet(
    ["You are a fool and a liar.", "He is a rat, so shut your mouth.", "What a stupid thing to say!"],
    TEXTS[1:4],
    paired=True,
)
# The curvature is gathered on the neutral side and on `fit`; with the same texts in both it is that of one side.
NEUTRAL = NeutralText(PAIRS.neutral, TEXTS[2:], TEXTS[:1])
PARTS = ("mlp", "attention")


class Reading:
    """Activations of one text, and gradients of its summed NLL, float64: lists by layer of [tokens, width]."""

    def __init__(self, lm, text):
        hf = copy.deepcopy(lm.hf).double()
        hf.requires_grad_(True)
        seen, blocks = {}, hf.transformer.h

        def keep(name, x):
            x.retain_grad()
            seen.setdefault(name, []).append(x)

        for block in blocks:
            block.register_forward_hook(lambda m, a, out: keep("stream", out[0] if isinstance(out, tuple) else out))
            block.mlp.c_fc.register_forward_hook(lambda m, a, out: keep("up", out))
            for part, linear in (("mlp", block.mlp.c_proj), ("attention", block.attn.c_proj)):
                linear.register_forward_pre_hook(lambda m, a, part=part: keep(f"{part} keys", a[0]))
                linear.register_forward_hook(lambda m, a, out, part=part: keep(f"{part} writes", out))
        ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
        logits = hf(input_ids=ids).logits[0, :-1]
        nll = -logits.log_softmax(-1)[torch.arange(len(logits)), ids[0, 1:]].sum()
        nll.backward()
        self.n_predicted = len(logits)

        def arrays(name, of=lambda x: x):
            return [of(x).detach().reshape(ids.shape[1], -1).numpy() for x in seen[name]]

        self.stream, self.up = arrays("stream"), arrays("up")
        self.keys = {part: arrays(f"{part} keys") for part in PARTS}
        self.writes = {part: arrays(f"{part} writes") for part in PARTS}
        self.deltas = {part: arrays(f"{part} writes", lambda x: x.grad) for part in PARTS}


@pytest.fixture(scope="module")
def lm():
    return random_model("gpt2", n_layer=LAYERS, n_positions=64, scale=4.0)


@pytest.fixture(scope="module")
def toxic(lm):
    return [Reading(lm, text) for text in PAIRS.toxic]


@pytest.fixture(scope="module")
def neutral(lm):
    return [Reading(lm, text) for text in PAIRS.neutral]


def weight(lm, layer, part="mlp"):
    """W [d_in, d_model] of the plain model in its current state."""
    block = lm.hf.transformer.h[layer]
    return (block.mlp if part == "mlp" else block.attn).c_proj.weight.detach().double().numpy().copy()


def means(side, layer):
    """Residual stream after a block, averaged over the tokens except the first: a row per text."""
    return np.array([reading.stream[layer][1:].mean(0) for reading in side])


def unit(x):
    return x / np.sqrt(x @ x)


def changed_by(intervention, lm, read):
    """Return `read(lm)` without and with the intervention."""
    before = read(lm)
    with intervention.applied(lm):
        return before, read(lm)


# AurA, Det0 and Damp


def aurocs(toxic, neutral):
    """Share of (toxic, neutral) pairs that the unit's largest value orders correctly, ties as half: [layers, units]."""

    def peaks(reading, layer):
        return np.r_[reading.up[layer][1:].max(0), reading.writes["mlp"][layer][1:].max(0)]

    rows = []
    for layer in range(LAYERS):
        wins = [
            (peaks(t, layer) > peaks(n, layer)) + 0.5 * (peaks(t, layer) == peaks(n, layer))
            for t in toxic
            for n in neutral
        ]
        rows.append(np.mean(wins, axis=0))
    return np.array(rows)


def outputs_in_float32(lm):
    """Outputs of both linear maps of the first MLP of the model, with the interventions applied to it."""
    seen, mlp = [], lm.hf.transformer.h[0].mlp
    handles = [
        module.register_forward_hook(lambda m, a, out: seen.append(out[0].numpy())) for module in (mlp.c_fc, mlp.c_proj)
    ]
    with torch.no_grad():
        lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(TEXTS[0])["input_ids"]]]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_aura(lm, toxic, neutral, mode):
    a = aurocs(toxic, neutral)
    alpha = np.where(a > 0.5, 1 - 2 * (a - 0.5), 1)
    aura = AurA.fit(lm, PAIRS, strength=1, mode=mode)
    np.testing.assert_allclose(aura.factors, alpha, atol=1e-6)
    np.testing.assert_allclose(AurA.fit(lm, PAIRS, strength=0.5).factors, (1 + alpha) / 2, atol=1e-6)
    before, after = changed_by(aura, lm, outputs_in_float32)
    np.testing.assert_allclose(after[0], before[0] * alpha[0, :64], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_det0_and_damp(lm, toxic, neutral, scale):
    a = aurocs(toxic, neutral).ravel()
    order = sorted(range(a.size), key=lambda i: -a[i])
    k = next(k for k in range(20, a.size) if a[order[k - 1]] > a[order[k]])  # a k at which no tie is broken
    factors = np.ones(a.size)
    factors[order[:k]] = scale
    np.testing.assert_array_equal(Damp.fit(lm, PAIRS, k=k, scale=scale).factors.numpy().ravel(), factors)


# Linear-AcT


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_linear_act(lm, toxic, neutral, strength):
    act = LinearAcT.fit(lm, PAIRS, strength=strength, sequential=False)
    for layer in range(LAYERS):
        x, y = (np.sort([r.writes["mlp"][layer][1:].mean(0) for r in side], axis=0) for side in (toxic, neutral))
        omega = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / ((x - x.mean(0)) ** 2).sum(0)
        beta = y.mean(0) - omega * x.mean(0)
        np.testing.assert_allclose(act.maps[layer].omega, omega, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(act.maps[layer].beta, beta, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(act.maps[layer].low, x.min(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(act.maps[layer].high, x.max(0), rtol=1e-4, atol=1e-5)
    first = act.maps[0]
    omega, beta, low, high = (part.double().numpy() for part in (first.omega, first.beta, first.low, first.high))
    (_, before), (_, after) = changed_by(act, lm, outputs_in_float32)
    moved = (1 - strength) * before + strength * (omega * before + beta)
    gate = (low <= before) & (before <= high)
    assert 0.05 < gate.mean() < 0.95
    np.testing.assert_allclose(after, np.where(gate, moved, before), rtol=1e-3, atol=1e-4)


# ProFS


@pytest.mark.parametrize("k", [1, 2])
def test_profs(lm, toxic, neutral, k):
    profs = ProFS.fit(lm, PAIRS, strength=1, k=k)
    before = [weight(lm, layer) for layer in range(LAYERS)]
    with profs.applied(lm):
        after = [weight(lm, layer) for layer in range(LAYERS)]
    for layer in range(LAYERS):
        if layer < LAYERS // 2:
            np.testing.assert_array_equal(after[layer], before[layer])
            continue
        X, Y = means(toxic, layer), means(neutral, layer)
        mu = np.linalg.eigh(X.T @ X)[1][:, -1]  # the top right singular vector of X⁺
        D = ((X - Y) / 2) @ (np.eye(16) - np.outer(mu, mu))
        V = np.linalg.eigh(D.T @ D)[1][:, -k:]
        np.testing.assert_allclose(after[layer], before[layer] @ (np.eye(16) - V @ V.T), rtol=1e-3, atol=1e-4)


# Directions in the residual stream


def stream_in_float32(lm, layer):
    seen = []
    handle = lm.hf.transformer.h[layer].register_forward_hook(
        lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).reshape(-1, 16).numpy())
    )
    with torch.no_grad():
        lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(TEXTS[0])["input_ids"]]]))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("layer", [None, 0, 3])
def test_caa_negated(lm, toxic, neutral, layer):
    at = LAYERS // 2 if layer is None else layer
    v = means(toxic, at).mean(0) - means(neutral, at).mean(0)
    steering = Steering.fit(lm, PAIRS, strength=1.5, layer=layer)
    before, after = changed_by(steering, lm, lambda lm: stream_in_float32(lm, at))
    np.testing.assert_allclose(after, before - 1.5 * v, rtol=1e-4, atol=1e-4)


def probe_of(toxic, neutral):
    """Logistic regression with an L2 penalty of 1 on centred rows divided by their common size, by BFGS."""
    T, N = means(toxic, LAYERS - 2), means(neutral, LAYERS - 2)
    X = np.concatenate([T, N]) - np.concatenate([T, N]).mean(0)
    X = X / np.sqrt((X**2).mean())
    sign = np.repeat([1, -1], [len(T), len(N)])

    def loss(w):
        return np.logaddexp(0, -sign * (X @ w[:-1] + w[-1])).sum() + w[:-1] @ w[:-1] / 2

    return unit(minimize(loss, np.zeros(17), method="BFGS", options={"gtol": 1e-8}).x[:-1])


@pytest.mark.parametrize("source", ["probe", "row", "svd"])
def test_value_vectors(lm, toxic, neutral, source, monkeypatch):
    monkeypatch.setattr("toxloc.interventions.methods.value_vector.STACKED", 40)  # fewer than the 256 rows
    w = probe_of(toxic, neutral)
    rows = np.concatenate([weight(lm, layer) for layer in range(LAYERS)])
    closest = np.argsort(-(rows @ w) / np.linalg.norm(rows, axis=1))
    top = np.linalg.eigh(rows[closest[:40]].T @ rows[closest[:40]])[1][:, -1]
    v = {"probe": w, "row": unit(rows[closest[0]]), "svd": top * np.sign(top @ w)}[source]
    vector = ValueVector.fit(lm, PAIRS, source=source, strength=20)
    np.testing.assert_allclose(vector.direction, v, atol=1e-3)
    before, after = changed_by(vector, lm, lambda lm: stream_in_float32(lm, LAYERS - 2))
    np.testing.assert_allclose(after, before - 20 * v, atol=2e-2)


def writes_in_float32(lm):
    """Return what attention and MLP of every layer write: [layers, 2, tokens, d_model]."""
    seen, handles = [], []
    for block in lm.hf.transformer.h:
        handles += [
            module.register_forward_hook(lambda m, a, out: seen.append(out[0].numpy()))
            for module in (block.attn.c_proj, block.mlp.c_proj)
        ]
    with torch.no_grad():
        lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(TEXTS[0])["input_ids"]]]))
    for handle in handles:
        handle.remove()
    return np.array(seen).reshape(LAYERS, 2, -1, 16)


@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_directional_ablation(lm, toxic, neutral, mode):
    r = unit(means(toxic, 1).mean(0) - means(neutral, 1).mean(0))
    away = np.eye(16) - np.outer(r, r)
    ablation = DirectionalAblation.fit(lm, PAIRS, layer=1, layers=[0, 1, 3], strength=1, mode=mode)
    np.testing.assert_allclose(ablation.direction, r, atol=1e-5)
    before, after = changed_by(ablation, lm, writes_in_float32)
    np.testing.assert_allclose(after[0, 0], before[0, 0] @ away, rtol=1e-4, atol=1e-4)  # both have the same input
    along = np.abs(after @ r).max((1, 2))
    assert along[[0, 1, 3]].max() < 1e-4 < along[2]  # all writes of these layers and no other writes
    if mode == "weights":
        W, b = weight(lm, 3, "attention"), lm.hf.transformer.h[3].mlp.c_proj.bias.numpy().copy()
        with ablation.applied(lm):
            np.testing.assert_allclose(weight(lm, 3, "attention"), W @ away, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(lm.hf.transformer.h[3].mlp.c_proj.bias, b @ away, rtol=1e-4, atol=1e-5)


# TRNE and Meow2X


def gradient(toxic, neutral, layer, part="mlp"):
    """d(NLL_T - NLL_N)/dW, each NLL the mean per predicted token, without the first position's key."""

    def of(side):
        return sum(r.keys[part][layer][1:].T @ r.deltas[part][layer][1:] for r in side) / sum(
            r.n_predicted for r in side
        )

    return of(toxic) - of(neutral)


def curvature(neutral, layer, part="mlp"):
    """C = E[a aᵀ] over all tokens and S = E[δ δᵀ] per predicted token, of neutral text."""
    a = np.concatenate([r.keys[part][layer] for r in neutral])
    d = np.concatenate([r.deltas[part][layer] for r in neutral])
    return a.T @ a / len(a), d.T @ d / sum(r.n_predicted for r in neutral)


def inverse_root(M, ridge):
    values, vectors = np.linalg.eigh(M + ridge * np.trace(M) / len(M) * np.eye(len(M)))
    return vectors / np.sqrt(values) @ vectors.T


def steepest(toxic, neutral, layer, part, ridge):
    """σ₁ C̃^(-1/2) u₁ v₁ᵀ S̃^(-1/2), with σ₁ u₁ v₁ᵀ the leading part of C̃^(-1/2) G S̃^(-1/2)."""
    C, S = (inverse_root(M, ridge) for M in curvature(neutral, layer, part))
    U, sizes, Vh = np.linalg.svd(C @ gradient(toxic, neutral, layer, part) @ S)
    return sizes[0] * np.outer(C @ U[:, 0], Vh[0] @ S), sizes[0]


@pytest.mark.parametrize("part", PARTS)
def test_trne_frobenius(lm, toxic, neutral, part):
    edit = TRNE.fit(lm, PAIRS, metric="frobenius", norm=0.1, layers=2, sites=part, neutral=NEUTRAL)
    G = [gradient(toxic, neutral, layer, part) for layer in range(LAYERS)]
    largest = sorted(range(LAYERS), key=lambda layer: -np.linalg.norm(G[layer]))[:2]
    before = [weight(lm, layer, part) for layer in range(LAYERS)]
    with edit.applied(lm):
        after = [weight(lm, layer, part) for layer in range(LAYERS)]
    for layer in range(LAYERS):
        U, _, Vh = np.linalg.svd(G[layer])
        step = 0.1 / np.sqrt(2) * np.linalg.norm(before[layer]) * np.outer(U[:, 0], Vh[0])
        step = step if layer in largest else np.zeros_like(step)
        np.testing.assert_allclose(after[layer] - before[layer], step, rtol=1e-2, atol=2e-5)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_trne_kl(lm, toxic, neutral, part, ridge):
    edit = TRNE.fit(lm, PAIRS, norm=0.1, sites=part, ridge=ridge, neutral=NEUTRAL)
    steps = [steepest(toxic, neutral, layer, part, ridge) for layer in range(LAYERS)]
    before = [weight(lm, layer, part) for layer in range(LAYERS)]
    relative = np.sqrt(
        sum((np.linalg.norm(step) / np.linalg.norm(W)) ** 2 for (step, _), W in zip(steps, before, strict=True))
    )
    with edit.applied(lm):
        after = [weight(lm, layer, part) for layer in range(LAYERS)]
    for layer, (step, sigma) in enumerate(steps):
        wanted = 0.1 / relative * step
        np.testing.assert_allclose(after[layer] - before[layer], wanted, rtol=0, atol=0.01 * np.abs(wanted).max())
        name = str(layer) if part == "mlp" else f"{layer}.attention"
        assert edit.record["editability"][name] == pytest.approx(sigma, rel=1e-3)
    assert edit.record["strength"] == pytest.approx(0.1 / relative, rel=1e-3)


def values_and_costs(lm, toxic, neutral, part):
    """-<G_u, W_u> and tr(C_uu W_u S W_uᵀ) of every unit u: of width 1 (neurons) or 8 (heads)."""
    width = 1 if part == "mlp" else 8
    values = {}
    for layer in range(LAYERS):
        G, W = gradient(toxic, neutral, layer, part), weight(lm, layer, part)
        C, S = curvature(neutral, layer, part)
        for u in range(len(W) // width):
            rows = slice(u * width, (u + 1) * width)
            values[layer, u] = -(G[rows] * W[rows]).sum(), np.trace(C[rows, rows] @ W[rows] @ S @ W[rows].T)
    return values


@pytest.mark.parametrize("part", PARTS)
def test_meow2x_takes_the_units_of_greatest_worth_first(lm, toxic, neutral, part):
    known = values_and_costs(lm, toxic, neutral, part)
    worth = {place: value / np.sqrt(cost) for place, (value, cost) in known.items() if value > 0}
    order = sorted(worth, key=worth.get, reverse=True)
    budget = {"kl": {"mlp": 1e-3, "attention": 1.5e-4}[part]}
    meow = Meow2X.fit(lm, PAIRS, sites=part, scale=0.5, budget=budget, neutral=NEUTRAL)
    chosen = meow.neurons if part == "mlp" else meow.heads
    assert 1 <= len(chosen) < len(order)
    assert set(chosen) == set(order[: len(chosen)])
    assert set(chosen.values()) == {0.5}
    assert meow.record["gain"] == pytest.approx(sum(0.5 * known[place][0] for place in chosen), rel=1e-3)


@pytest.mark.parametrize("part", PARTS)
def test_graded_meow2x_scales_by_value_over_cost(lm, toxic, neutral, part):
    known = {place: pair for place, pair in values_and_costs(lm, toxic, neutral, part).items() if pair[0] > 0}
    meow = Meow2X.fit(lm, PAIRS, sites=part, scale="graded", budget={"kl": 0.05}, neutral=NEUTRAL)
    chosen = meow.neurons if part == "mlp" else meow.heads
    assert set(chosen) == set(known)
    s = meow.record["strength"]
    for place, (value, cost) in known.items():
        assert chosen[place] == pytest.approx(1 - min(1, s * value / cost), abs=2e-3)


@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_meow2x_scales_units_and_sites(lm, mode):
    """Scale head 1 of the first attention by .25, then the whole attention, including its bias, by .5; then the MLP."""
    block = lm.hf.transformer.h[0]
    W, b = weight(lm, 0, "attention"), block.attn.c_proj.bias.double().numpy().copy()
    z = Reading(lm, TEXTS[0]).keys["attention"][0]
    scales = np.repeat([1, 0.25], 8)
    for meow, wanted in (
        (Meow2X(neurons=[(Site(0, "attention"), 1)], scale=0.25, mode=mode), (z * scales) @ W + b),
        (Meow2X(layers=[Site(0, "attention")], scale=0.5, mode=mode), 0.5 * (z @ W + b)),
    ):
        with meow.applied(lm):
            np.testing.assert_allclose(writes_in_float32(lm)[0, 0], wanted, rtol=1e-3, atol=1e-4)
    a, W, b = Reading(lm, TEXTS[0]).keys["mlp"][0], weight(lm, 0), block.mlp.c_proj.bias.double().numpy().copy()
    scales = np.ones(64)
    scales[[3, 9]] = 0.0
    for meow, wanted in (
        (Meow2X(neurons=[(0, 3), (0, 9)], scale=0.0, mode=mode), (a * scales) @ W + b),
        (Meow2X(layers=[0], scale=0.25, mode=mode), 0.25 * (a @ W + b)),
    ):
        with meow.applied(lm):
            np.testing.assert_allclose(writes_in_float32(lm)[0, 1], wanted, rtol=1e-3, atol=1e-4)
