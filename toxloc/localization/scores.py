"""The localization scores: what each says of a layer and of a neuron, and its value under resampled texts.

Notation: `a` [pos, d_mlp] is a layer's hook_post, m = a @ W_out + b_out, T the toxic and N the neutral texts,
G = d(NLL_T - NLL_N)/dW_out. docs/methods.md says which question each score answers and when it misleads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.stats import rankdata
from torch import Tensor

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from .auroc import auroc_of_ranks
from .contributions import Contributions
from .linalg import factor, steepest_at_cost
from .moments import Moments
from .statistics import ContrastStatistics
from .uncertainty import Weights

NULL_DRAWS = 200  # shufflings for the mean of a null when no intervals were asked for
RIDGE = 1.0


class Scored(NamedTuple):
    """What a score found.

    Attributes:
        layers: float64 [n_layers].
        neurons: float64 [n_layers, d_mlp].
        draws: for every `Weights` given, the layer score under each of its draws; None if the score cannot be had
            from per-group contributions.
    """

    layers: Float64[np.ndarray, " n_layers"]
    neurons: Float64[np.ndarray, "n_layers d_mlp"]
    draws: list[Float64[np.ndarray, "draws n_layers"]] | None


Formula = Callable[[LoadedModel, ContrastStatistics, Sequence[Weights]], Scored]


@dataclass(frozen=True)
class Score:
    """A score by name.

    Attributes:
        title: what figures call it.
        question: what it answers.
        formula: computes it.
        needs: what has to be gathered besides moments: "gradients", "curvature", "reliance",
            "peaks".
        signed: whether negative values mean something.
        bounds: smallest and largest value of a layer's score.
    """

    title: str
    question: str
    formula: Formula
    needs: frozenset[str] = frozenset()
    signed: bool = False
    bounds: tuple[float, float] = (0.0, np.inf)


def activation(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How differently the MLP behaves on toxic text, in pooled standard deviations.

    Layer: root mean square over d_model of (mean_T(m) - mean_N(m)) / sd_pooled(m). Neuron: the same difference
    of its activation a, signed. The activation contrast behind Meow2X.
    """
    toxic, neutral = _sides(s)
    tokens = _joined(toxic.tokens, neutral.tokens)

    def layer_score(layer: int, w: Weights) -> Float64[np.ndarray, " draws"]:
        sums = _joined(toxic.outputs[layer], neutral.outputs[layer])
        squares = _joined(toxic.squares[layer], neutral.squares[layer])
        n_T, n_N = (np.maximum(side @ tokens, 1)[:, None] for side in (w.toxic, w.neutral))
        mean_T, mean_N = w.toxic @ sums / n_T, w.neutral @ sums / n_N
        within = (w.toxic + w.neutral) @ squares - n_T * mean_T**2 - n_N * mean_N**2
        sd = np.sqrt(np.maximum(within / (n_T + n_N), 0))
        return rms(_ratio(mean_T - mean_N, sd))

    def rms(rows: Float64[np.ndarray, "draws d_model"]) -> Float64[np.ndarray, " draws"]:
        size: np.ndarray = np.linalg.norm(rows, axis=1) / np.sqrt(rows.shape[1])
        return size

    neurons = [_standardised(t, n) for t, n in zip(s.toxic.neurons, s.neutral.neurons, strict=True)]
    return _over_layers(lm, s, weights, layer_score, np.stack(neurons))


def gradient_norm(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How fast a small edit of the weights moves the contrast NLL_T - NLL_N.

    Layer: Frobenius norm of G. Neuron: Euclidean norm of its row of G. Behind TRNE. It says where an edit has
    leverage, which differs with depth whatever the text: not where toxicity lives. Draws come from sketches of the
    groups' gradients, set to the exact norm on the texts as they are.
    """
    toxic, neutral = _sides(s)
    predicted = _joined(toxic.predicted, neutral.predicted)
    neurons = np.stack([s.G(layer).double().norm(dim=1).cpu().numpy() for layer in range(lm.n_layers)])
    exact = np.linalg.norm(neurons, axis=1)
    sketched = _over_layers(lm, s, weights, lambda layer, w: np.linalg.norm(
        _mean_difference(_joined(toxic.sketch[layer], neutral.sketch[layer]).reshape(len(predicted), -1),
                         predicted, w), axis=1), neurons)
    factor = _ratio(exact, sketched.layers)
    return Scored(exact, neurons, [draws * factor for draws in sketched.draws or []])


def gradient_calibrated(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """The gradient norm over its own mean under shuffled labels: 1 where the labels say nothing about the gradient.

    Layer: ||G||_F / mean over shufflings of ||G||_F, which takes the depth's own scale out. Neuron: norm of its row
    over what a row of its layer has on average under shuffled labels.
    """
    toxic, neutral = (len(side.tokens) for side in _sides(s))
    null = next((w for w in weights if w.null), Weights.shuffled(toxic, neutral, s.paired, NULL_DRAWS))
    raw = gradient_norm(lm, s, [null, *weights])
    assert raw.draws is not None
    scale = raw.draws[0].mean(0)
    rows = scale[:, None] / np.sqrt(raw.neurons.shape[1])
    return Scored(_ratio(raw.layers, scale), _ratio(raw.neurons, rows), [_ratio(d, scale) for d in raw.draws[1:]])


def attribution(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """First-order rise of the contrast when the part is scaled down: what the part itself contributes to toxicity.

    Neuron: -<row of G, row of W_out>. Layer: the sum over its neurons, -<G, W_out>. Where a norm follows the MLP
    (gemma2, gemma3, olmo2) it undoes any scaling of all neurons alike, and the sum is near 0; there a layer's score
    is that of the norm's output c, -<dNLL/dc, c>, which is what scaling the layer scales.
    """
    toxic, neutral = _sides(s)
    predicted = _joined(toxic.predicted, neutral.predicted)
    neurons = np.stack([-(s.G(layer).double() * lm.W_out(layer).double()).sum(1).cpu().numpy()
                        for layer in range(lm.n_layers)])
    return _over_layers(lm, s, weights, lambda layer, w: _mean_difference(
        _joined(toxic.attribution[layer], neutral.attribution[layer])[:, None], predicted, w)[:, 0], neurons)


def combined(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """Name the neurons that learned toxicity: what they contribute, how much toxic text relies on them, in which layer.

    Layer: its attribution. Neuron: (its attribution + its reliance, each in standard deviations over the layer's
    neurons) times the layer's share of all positive layer attributions. Reliance is sqrt(E_T[a_j²] w_jᵀ S_T w_j), w_j
    its row of W_out: to second order, how far removing it alone moves the predictions on toxic text. Attribution is of
    first order and misses it: training drives the first-order effect of every weight on its training text to 0.
    """
    if not s.toxic.S:
        raise ToxlocError("combined needs S of the toxic texts; gather it with collect_contrast(reliance=True).")
    own = attribution(lm, s, weights)
    positive = np.maximum(own.layers, 0)
    share = _ratio(positive, positive.sum(keepdims=True))
    both = _in_sd(own.neurons) + _in_sd(np.stack([_reliance(lm, s, layer) for layer in range(lm.n_layers)]))
    return own._replace(neurons=both * share[:, None])


def _reliance(lm: LoadedModel, s: ContrastStatistics, layer: int) -> Float64[np.ndarray, " d_mlp"]:
    W, moments = lm.W_out(layer).double(), s.toxic.neurons[layer]
    size = moments.var + moments.mean**2
    reliance: np.ndarray = (size * ((W @ s.toxic.S[layer].double()) * W).sum(1).cpu()).clamp_min(0).sqrt().numpy()
    return reliance


def _in_sd(neurons: Float64[np.ndarray, "n_layers d_mlp"]) -> Float64[np.ndarray, "n_layers d_mlp"]:
    return _ratio(neurons, neurons.std(1, keepdims=True))


def auroc(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How well the largest activation in a text tells toxic from neutral texts.

    Neuron: area under the ROC curve of its activation, max-pooled over a text's tokens; exact for these texts, ties
    counted half. Layer: its best neuron's. Source: AurA (Suau et al. 2024, arXiv:2407.12824). Bootstrap draws use
    the placements of the texts (DeLong et al. 1988), shufflings are exact.
    """
    layers = [_auroc_of_layer(s, layer, weights) for layer in range(lm.n_layers)]
    neurons = np.stack([values for values, _ in layers])
    draws = [np.stack([best[i] for _, best in layers], axis=1) for i in range(len(weights))]
    return Scored(neurons.max(1), neurons, draws)


def _auroc_of_layer(s: ContrastStatistics, layer: int, weights: Sequence[Weights]
                    ) -> tuple[Float64[np.ndarray, " d_mlp"], list[Float64[np.ndarray, " draws"]]]:
    toxic, neutral = _sides(s)
    if toxic.peaks is None or neutral.peaks is None:
        raise ToxlocError('auroc needs the peaks of every text; gather them with collect_contrast(peaks=True).')
    (x, text_T), (y, text_N) = toxic.peaks.layer(layer), neutral.peaks.layer(layer)
    groups = np.r_[toxic.group[text_T], neutral.group[text_N] + len(toxic.tokens)]
    ranks = rankdata(np.concatenate([x, y]), axis=0)
    n, m = len(x), len(y)
    values = auroc_of_ranks(ranks, n)
    # Placement: the share of the other side that a text is on the right side of; their mean is the AUROC.
    placements = np.concatenate([(ranks[:n] - rankdata(x, axis=0)) / m, 1 - (ranks[n:] - rankdata(y, axis=0)) / n])
    best = []
    for w in weights:
        in_T, in_N = w.toxic[:, groups], w.neutral[:, groups]
        n_T, n_N = in_T.sum(1, keepdims=True), in_N.sum(1, keepdims=True)
        if w.null:
            drawn = (in_T @ ranks - n_T * (n_T + 1) / 2) / (n_T * n_N)
        else:
            drawn = in_T @ placements / n_T + in_N @ placements / n_N - values
        best.append(drawn.max(1))
    return values, best


def editability(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """Where an edit is cheap: gain in the contrast per unit of change on neutral text, fair across depth.

    Layer: the largest singular value of C̃^(-1/2) G S̃^(-1/2), C̃ and S̃ the ridged Kronecker factors of the curvature.
    Neuron: the same if its row of W_out alone may change, ||S̃^(-1/2) g_j|| / sqrt(C̃_jj). No draws: it needs every
    group's whole gradient.
    """
    if not s.C:
        raise ToxlocError("editability needs the curvature; gather it with collect_contrast(curvature=True).")
    layers, neurons = [], []
    for layer in range(lm.n_layers):
        C, S, G = s.C[layer], s.S[layer], s.G(layer).double()
        layers.append(steepest_at_cost(G, C, S, RIDGE)[0])
        rows = torch.linalg.solve_triangular(factor(S, RIDGE), G.T, upper=False).norm(dim=0)
        diagonal = C.diagonal().double()
        neurons.append((rows / (diagonal + RIDGE * diagonal.mean()).sqrt()).cpu().numpy())
    return Scored(np.array(layers), np.stack(neurons), None)


_GRADIENTS = frozenset({"gradients"})
SCORES: dict[str, Score] = {
    "activation": Score("activation contrast", "does it behave differently on toxic text?", activation),
    "gradient_norm": Score("gradient norm", "where does a small edit move the contrast most?", gradient_norm,
                           _GRADIENTS),
    "gradient_calibrated": Score("gradient norm over its null", "is its gradient larger than shuffled labels make it?",
                                 gradient_calibrated, _GRADIENTS),
    "attribution": Score("attribution", "what does it contribute itself?", attribution, _GRADIENTS, signed=True,
                         bounds=(-np.inf, np.inf)),
    "combined": Score("attribution and reliance", "which neurons learned it?", combined,
                      _GRADIENTS | {"reliance"}, signed=True, bounds=(-np.inf, np.inf)),
    "auroc": Score("best neuron's AUROC", "does it detect toxic text?", auroc, frozenset({"peaks"}), bounds=(0.0, 1.0)),
    "editability": Score("editability", "where is an edit cheap?", editability, frozenset({"gradients", "curvature"})),
}


def _sides(s: ContrastStatistics) -> tuple[Contributions, Contributions]:
    assert s.toxic.contributions is not None
    assert s.neutral.contributions is not None
    return s.toxic.contributions, s.neutral.contributions


def _joined(toxic: Tensor, neutral: Tensor) -> np.ndarray:
    """Groups of both sides, toxic ones first."""
    return torch.cat([toxic, neutral]).double().cpu().numpy()


def _over_layers(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights],
                 layer_score: Callable[[int, Weights], np.ndarray],
                 neurons: Float64[np.ndarray, "n_layers d_mlp"]) -> Scored:
    """Evaluate a layer's score with the texts as they are, and under every draw."""
    observed = Weights.observed(*(len(side.tokens) for side in _sides(s)))
    values = [[layer_score(layer, w) for layer in range(lm.n_layers)] for w in (observed, *weights)]
    return Scored(np.array(values[0])[:, 0], neurons, [np.stack(drawn, axis=1) for drawn in values[1:]])


def _mean_difference(sums: Float64[np.ndarray, "groups d"], counts: Float64[np.ndarray, " groups"],
                     w: Weights) -> Float64[np.ndarray, "draws d"]:
    """Mean over toxic minus mean over neutral tokens, for every draw."""
    shares = [side / np.maximum(side @ counts, 1)[:, None] for side in (w.toxic, w.neutral)]
    difference: np.ndarray = (shares[0] - shares[1]) @ sums
    return difference


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where the divisor vanishes for want of any variation."""
    out = np.zeros(np.broadcast_shapes(above.shape, below.shape))
    quotient: np.ndarray = np.divide(above, below, out=out, where=below > 0)
    return quotient


def _standardised(toxic: Moments, neutral: Moments) -> Float64[np.ndarray, " d"]:
    """(mean_T - mean_N) / sd_pooled, element by element; 0 where an element never varies."""
    var = (toxic.squares + neutral.squares) / (toxic.count + neutral.count)
    return _ratio((toxic.mean - neutral.mean).numpy(), var.clamp_min(0).sqrt().numpy())
