"""The formulas of the localization scores; `score_table` lists the scores.

Notation: a site computes m = a @ W + b from its keys `a` [pos, d_in]; T are the toxic and N the neutral texts;
G = d(NLL_T - NLL_N)/dW. A unit is a neuron (one key and its row of W_out) or a head (d_head keys and their rows of
W_O). docs/methods.md says which question each score answers, and docs/concepts/scores/ when it misleads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import rankdata
from torch import Tensor

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from ..models.site_view import SiteView
from ..models.sites import Site
from .auroc import auroc_of_ranks
from .linalg import factor, steepest_at_cost
from .moments import Moments
from .scored import Scored, both_contributions, both_sides, mean_difference, mean_over_pairs, over_sites, ratio
from .statistics import ContrastStatistics
from .uncertainty import Weights

NULL_DRAWS = 200  # permutations for the mean of a null distribution if the caller gives none
RIDGE = 1.0


def activation(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How differently the site behaves on toxic text, in pooled standard deviations.

    Site: root mean square over d_model of (mean_T(m) - mean_N(m)) / sd_pooled(m). Neuron: the signed standardised
    difference of its activation a. Head: root mean square of the standardised difference over the elements of its z.
    This is the activation contrast behind Meow2X.
    """
    toxic, neutral = both_contributions(s)

    def site_score(site: Site, w: Weights) -> Float64[np.ndarray, " draws"]:
        tokens = both_sides(toxic.counts[site], neutral.counts[site])
        sums = both_sides(toxic.outputs[site], neutral.outputs[site])
        squares = both_sides(toxic.squares[site], neutral.squares[site])
        n_T, n_N = (np.maximum(side @ tokens, 1)[:, None] for side in (w.toxic, w.neutral))
        mean_T, mean_N = w.toxic @ sums / n_T, w.neutral @ sums / n_N
        within = (w.toxic + w.neutral) @ squares - n_T * mean_T**2 - n_N * mean_N**2
        sd = np.sqrt(np.maximum(within / (n_T + n_N), 0))
        return rms(ratio(mean_T - mean_N, sd))

    def rms(rows: Float64[np.ndarray, "draws d_model"]) -> Float64[np.ndarray, " draws"]:
        size: np.ndarray = np.linalg.norm(rows, axis=1) / np.sqrt(rows.shape[1])
        return size

    def unit_score(view: SiteView) -> Float64[np.ndarray, " n_units"]:
        difference = _standardised(s.toxic.keys[view.site], s.neutral.keys[view.site])
        return difference if view.width == 1 else rms(difference.reshape(view.n_units, view.width))

    return over_sites(s, weights, site_score, [unit_score(view) for view in _views(lm, s)])


def gradient_norm(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How fast a small edit of the weights moves the contrast NLL_T - NLL_N.

    Site: Frobenius norm of G. Unit: Frobenius norm of its rows of G. This is the gradient contrast behind TRNE. It says
    where an edit has leverage, which differs with depth for any text, not where toxicity is. Draws are computed from
    sketches of the groups' gradients and scaled so that the sketch of the observed texts has the exact norm.
    """
    toxic, neutral = both_contributions(s)
    predicted = both_sides(toxic.predicted, neutral.predicted)
    row_norms = [s.G(view.site).double().norm(dim=1).cpu().numpy() for view in _views(lm, s)]
    exact = np.array([np.linalg.norm(norms) for norms in row_norms])
    units = [
        norms if view.width == 1 else np.linalg.norm(norms.reshape(view.n_units, view.width), axis=1)
        for view, norms in zip(_views(lm, s), row_norms, strict=True)
    ]
    sketched = over_sites(
        s,
        weights,
        lambda site, w: np.linalg.norm(
            mean_difference(
                both_sides(toxic.sketch[site], neutral.sketch[site]).reshape(len(predicted), -1), predicted, w
            ),
            axis=1,
        ),
        units,
    )
    scale = ratio(exact, sketched.sites)
    return Scored(exact, units, [draws * scale for draws in sketched.draws or []])


def gradient_calibrated(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """The gradient norm divided by its mean under shuffled labels: 1 where it is as large as under shuffled labels.

    Site: ||G||_F / mean over permutations of ||G||_F, which removes the scale due to the site's depth. Unit: norm of
    its rows of G, divided by the mean of its site under shuffled labels / sqrt(n_units), the size of an average unit.
    """
    toxic, neutral = (len(side.tokens) for side in both_contributions(s))
    null = next((w for w in weights if w.null), Weights.shuffled(toxic, neutral, s.paired, NULL_DRAWS))
    raw = gradient_norm(lm, s, [null, *weights])
    assert raw.draws is not None
    scale = raw.draws[0].mean(0)
    units = [ratio(norms, np.array(mean / np.sqrt(len(norms)))) for norms, mean in zip(raw.units, scale, strict=True)]
    return Scored(ratio(raw.sites, scale), units, [ratio(d, scale) for d in raw.draws[1:]])


def attribution(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """First-order rise of the contrast when a part is scaled down: the part's contribution to toxicity.

    Unit: -<its rows of G, its rows of W>. Site: the sum over its units, -<G, W>. If a norm follows the site (gemma2,
    gemma3, olmo2), the norm undoes a common scaling of all units, and this sum is near 0. The score of such a site is
    that of the norm's output c, -<dNLL/dc, c>, because scaling the site means scaling c. It is the first-order estimate
    of ablation that Syed et al. 2023 (arXiv:2310.10348) call attribution patching, with zero in place of the patch.
    """
    toxic, neutral = both_contributions(s)
    predicted = both_sides(toxic.predicted, neutral.predicted)
    units = [view.per_unit(-(s.G(view.site).double() * view.W.double()).sum(1)).cpu().numpy() for view in _views(lm, s)]
    return over_sites(
        s,
        weights,
        lambda site, w: mean_difference(
            both_sides(toxic.attribution[site], neutral.attribution[site])[:, None], predicted, w
        )[:, 0],
        units,
    )


def counterfactual(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How far a part pushes towards the toxic token where the two texts of a pair begin to differ.

    After the prefix that both texts share, D = log p(toxic token) - log p(neutral token), in nats. Unit: mean over
    pairs of <dD/da, a - mean_N(a)>, summed over all positions of the prefix and the unit's keys a. It is the
    first-order fall of D if the unit's activation is replaced by its mean over the neutral texts. Site: the sum over
    its units. With zero in place of the mean, the score would also contain what the part adds in every text, such as
    how frequent the two tokens are. Null: the two tokens of a pair swap, so that D and the values of the pair change
    sign. `weights` are those of the groups of pairs. Source: attribution patching (Syed et al. 2023,
    arXiv:2310.10348), with the mean in place of a counterfactual prompt.
    """
    d = s.differences
    if d is None:
        raise ToxlocError(
            "counterfactual needs the first differences of pairs; gather them with collect_contrast(differences=True)."
        )
    sums = np.stack([d.sites[site] for site in s.sites], axis=1)
    observed = Weights.observed(len(sums), len(sums))
    return Scored(
        mean_over_pairs(sums, d.counts, observed)[0],
        [d.units[site] for site in s.sites],
        [mean_over_pairs(sums, d.counts, w) for w in weights],
    )


def combined(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """Attribution and reliance combined, to identify the units that learned toxicity.

    Site: its attribution. Unit: (its attribution + its reliance, each in standard deviations over the site's units)
    times the site's share of all positive site attributions. Reliance is sqrt(tr(E_T[a_u a_uᵀ] W_u S_T W_uᵀ)), with
    a_u the unit's keys and W_u its rows of W: to second order, how much the predictions on toxic text change if only
    this unit is removed. For a neuron it is sqrt(E_T[a²] w S_T wᵀ). Attribution is of first order and misses reliance,
    because training drives the first-order effect of every weight on its training text to 0.
    """
    if not s.toxic.S:
        raise ToxlocError("combined needs S of the toxic texts; gather it with collect_contrast(reliance=True).")
    scored = attribution(lm, s, weights)
    positive = np.maximum(scored.sites, 0)
    shares = ratio(positive, positive.sum(keepdims=True))
    units = [
        (_in_sd(attributions) + _in_sd(_reliance(view, s))) * share
        for view, attributions, share in zip(_views(lm, s), scored.units, shares, strict=True)
    ]
    return scored._replace(units=units)


def _reliance(view: SiteView, s: ContrastStatistics) -> Float64[np.ndarray, " n_units"]:
    reliance: np.ndarray
    if view.width > 1:
        reliance = np.sqrt(removal_costs(view, s.toxic.C[view.site], s.toxic.S[view.site]))
        return reliance
    W, moments = view.W.double(), s.toxic.keys[view.site]
    size = moments.var + moments.mean**2
    reliance = (size * ((W @ s.toxic.S[view.site].double()) * W).sum(1).cpu()).clamp_min(0).sqrt().numpy()
    return reliance


def removal_costs(
    view: SiteView, C: Float[Tensor, "d_in d_in"], S: Float[Tensor, "d_model d_model"]
) -> Float64[np.ndarray, " n_units"]:
    """Return tr(C_uu W_u S W_uᵀ) of every unit: the second-order change of the predictions if only it is removed.

    For a neuron j this is C_jj w_j S w_jᵀ.
    """
    if view.width == 1:
        W = view.W.float()
        costs: np.ndarray = (C.diagonal() * ((W @ S) * W).sum(1)).double().cpu().numpy()
        return costs
    rows = view.W.double().unflatten(0, (view.n_units, view.width))
    blocks = _diagonal_blocks(C.double(), view)
    traces: np.ndarray = ((rows @ S.double()) @ rows.mT * blocks).sum((1, 2)).clamp_min(0).cpu().numpy()
    return traces


def _diagonal_blocks(C: Float[Tensor, "d_in d_in"], view: SiteView) -> Float[Tensor, "n_units width width"]:
    return torch.stack([C[view.rows(unit), view.rows(unit)] for unit in range(view.n_units)])


def _in_sd(units: Float64[np.ndarray, " n_units"]) -> Float64[np.ndarray, " n_units"]:
    return ratio(units, units.std(keepdims=True))


def auroc(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """How well the largest activation in a text separates toxic from neutral texts.

    Unit: area under the ROC curve of its activation (a neuron's a, the norm of a head's z), max-pooled over the tokens
    of a text; exact for these texts, ties count half. Site: AUROC of its best unit. Source: AurA (Suau et al. 2024,
    arXiv:2407.12824). Bootstrap draws use the placements of the texts (DeLong et al. 1988); permutations are exact.
    """
    results = [_auroc_at(s, site, weights) for site in s.sites]
    units = [values for values, _ in results]
    draws = [np.stack([best[i] for _, best in results], axis=1) for i in range(len(weights))]
    return Scored(np.array([values.max() for values in units]), units, draws)


def _auroc_at(
    s: ContrastStatistics, site: Site, weights: Sequence[Weights]
) -> tuple[Float64[np.ndarray, " n_units"], list[Float64[np.ndarray, " draws"]]]:
    toxic, neutral = both_contributions(s)
    if toxic.peaks is None or neutral.peaks is None:
        raise ToxlocError("auroc needs the peaks of every text; gather them with collect_contrast(peaks=True).")
    (x, text_T), (y, text_N) = toxic.peaks.at(site), neutral.peaks.at(site)
    groups = np.r_[toxic.group[text_T], neutral.group[text_N] + len(toxic.tokens)]
    ranks = rankdata(np.concatenate([x, y]), axis=0)
    n, m = len(x), len(y)
    values = auroc_of_ranks(ranks, n)
    # The placement of a text is the share of the other side's texts that it is ranked correctly against. The mean
    # placement of a side is the AUROC.
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
    """Where an edit is cheap: gain in the contrast per unit of change on neutral text, comparable across depth.

    Site: the largest singular value of C̃^(-1/2) G S̃^(-1/2), with C̃ and S̃ the Kronecker factors of the curvature plus a
    ridge. Unit: the same if only its rows of W may change; for a neuron ||S̃^(-1/2) g_j|| / sqrt(C̃_jj). An expert to
    which no neutral token is routed has the score 0, because the cost of its edits is unknown. The score has no draws,
    because they would need the whole gradient of every group.
    """
    if not s.C:
        raise ToxlocError("editability needs the curvature; gather it with collect_contrast(curvature=True).")
    sites, units = [], []
    for view in _views(lm, s):
        C, S, G = s.C[view.site], s.S[view.site], s.G(view.site).double()
        if not (C.any() and S.any()):
            sites.append(0.0)
            units.append(np.zeros(view.n_units))
            continue
        sites.append(steepest_at_cost(G, C, S, RIDGE)[0])
        whitened = torch.linalg.solve_triangular(factor(S, RIDGE), G.T, upper=False).T
        diagonal = C.diagonal().double()
        if view.width == 1:
            units.append((whitened.norm(dim=1) / (diagonal + RIDGE * diagonal.mean()).sqrt()).cpu().numpy())
        else:
            blocks = _diagonal_blocks(C.double(), view)
            blocks += RIDGE * diagonal.mean() * torch.eye(view.width, dtype=C.dtype, device=C.device)
            whitened_units = torch.linalg.solve_triangular(
                torch.linalg.cholesky(blocks), whitened.unflatten(0, (view.n_units, view.width)), upper=False
            )
            units.append(torch.linalg.matrix_norm(whitened_units, 2).cpu().numpy())
    return Scored(np.array(sites), units, None)


def routing(lm: LoadedModel, s: ContrastStatistics, weights: Sequence[Weights]) -> Scored:
    """Which experts does toxic text use?

    Site: mean router weight of the expert per token of the toxic texts, minus that per token of the neutral texts; 0
    where a token is not routed to the expert. A router chooses experts, not neurons, so the scores of neurons are 0.
    Only experts of a mixture have this score. It says where toxic text goes, not what the expert does with it.
    """
    toxic, neutral = both_contributions(s)
    tokens = both_sides(toxic.tokens, neutral.tokens)
    dense = [str(site) for site in s.sites if site not in toxic.mass]
    if dense:
        raise ToxlocError(
            f"routing is a score of routed experts, and {dense[0]} is not an expert; give parts=('expert',)."
        )
    return over_sites(
        s,
        weights,
        lambda site, w: mean_difference(both_sides(toxic.mass[site], neutral.mass[site])[:, None], tokens, w)[:, 0],
        [np.zeros(view.n_units) for view in _views(lm, s)],
    )


def _views(lm: LoadedModel, s: ContrastStatistics) -> list[SiteView]:
    return [lm.at(site) for site in s.sites]


def _standardised(toxic: Moments, neutral: Moments) -> Float64[np.ndarray, " d"]:
    """(mean_T - mean_N) / sd_pooled, element by element; 0 where an element never varies."""
    var = (toxic.squares + neutral.squares) / (toxic.count + neutral.count)
    return ratio((toxic.mean - neutral.mean).numpy(), var.clamp_min(0).sqrt().numpy())
