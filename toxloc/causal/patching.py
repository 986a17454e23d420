"""Patching: replace what a part of a model computes, and measure or estimate how the log-probability of pairs changes.

The two texts of a pair share a prefix and then differ. D is how much more likely the model finds the toxic text's
continuation than the neutral text's. The effect of a part is D minus the D of the model in which the part is replaced:
positive where the part pushes towards the toxic text. It is measured by replacing one part after another, or estimated
from gradients for all parts at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Int64

from ..errors import ToxlocError
from ..localization.activation import read_means
from ..localization.difference_statistics import groups_of_pairs
from ..localization.first_difference import FirstDifferences, first_differences
from ..localization.pair_batch import By, Over, PairReader
from ..localization.scored import estimate_over_pairs
from ..localization.uncertainty import DRAWS, Uncertainty
from ..models.batching import Row, encode_rows
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import BySite, Site, Unit
from ..support.arguments import whole_number
from ..support.progress import track
from ..texts.contrast import ContrastSet
from .estimate import estimated_effects
from .knockout import Parts
from .replacement import ReplacedPart, replaced_parts

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["exact", "attribution", "integrated"]
METHODS: tuple[str, ...] = get_args(Method)
BASELINES: tuple[str, ...] = get_args(By)
SPANS: tuple[str, ...] = get_args(Over)


@dataclass(frozen=True)
class Patching:
    """The effects of replacing parts of a model one by one.

    Attributes:
        parts: the sites or units, in the order in which they were given.
        by: what each part was replaced by.
        method: "exact", or how the effects were estimated: by "attribution" or "integrated" gradients.
        over: "first" if D compares the tokens at the first difference, in nats; "ending" if it compares everything
            after the shared prefix, in nats per token.
        n_pairs: number of pairs that D is averaged over.
        n_left_out: number of pairs without a usable first difference.
        difference: mean over pairs of D in the intact model.
        effect: mean over pairs of D minus the D of the model with the part replaced, float64 [n_parts]; positive where
            the part pushes towards the toxic text.
        uncertainty: 95% intervals of `effect`, and its null distribution, in which the two texts of a pair swap, so
            that the sign of the pair's effect changes; `p_adjusted` is adjusted for all parts. None without draws.
        units: estimated effect of every unit of the sites of `parts`, float64 [n_units], by site; None if the effects
            are exact.
    """

    parts: tuple[Site | Unit, ...]
    by: str
    method: str
    over: str
    n_pairs: int
    n_left_out: int
    difference: float
    effect: Float64[np.ndarray, " n_parts"]
    uncertainty: Uncertainty | None
    units: BySite[Float64[np.ndarray, " _n_units"]] | None = None

    def table(self) -> "pd.DataFrame":
        """Return one row per part: layer, part, expert, unit, effect, interval, null, z, p-values (NaN without draws).

        Example:
            >>> patch(lm, pairs, lm.sites("mlp")).table().nlargest(3, "effect")     # doctest: +SKIP
        """
        import pandas as pd

        sites = [part if isinstance(part, Site) else part[0] for part in self.parts]
        columns: dict[str, object] = {
            "layer": [site.layer for site in sites],
            "part": [site.part for site in sites],
            "expert": [site.expert for site in sites],
            "unit": [None if isinstance(part, Site) else part[1] for part in self.parts],
            "effect": self.effect,
        }
        for name in Uncertainty.names():
            columns[name] = np.nan if self.uncertainty is None else getattr(self.uncertainty, name)
        return pd.DataFrame(columns)


def patch(
    lm: AnyModel,
    pairs: ContrastSet | FirstDifferences,
    sites: Parts,
    by: By = "mean",
    *,
    method: Method = "exact",
    over: Over | None = None,
    steps: int = 8,
    draws: int = DRAWS,
    seed: int = 0,
    skip_first: bool = True,
    max_length: int = 128,
) -> Patching:
    """Replace each part of a model in turn, and measure how the log-probability difference of pairs changes.

    D compares the two texts of a pair after the prefix that they share. With `over="first"`, D = log p(toxic token) -
    log p(neutral token) at the first token that differs, in nats. With `over="ending"`, D = mean log p of the toxic
    text's further tokens - mean log p of those of the neutral text, in nats per token. The effect of a part is D minus
    D with the part replaced, averaged over pairs: positive where the part pushes towards the toxic text.

    A part is replaced at every position that is read (the prefix, or with `over="ending"` the whole of both texts):

    * by="mean": by its mean over the neutral texts of `pairs`;
    * by="zero": by zero;
    * by="resample": by what it computes at the same position in another pair, drawn at random (at the last position, if
      the other text is shorter);
    * by="counterfactual": by what it computes at the same position in the other text of the pair. Up to the first
      difference both texts are the same, so only the positions from there on are replaced, up to the length of the
      shorter text, and D is that over the endings. With counterfactual prompts (see `first_differences_of`) and
      `over="first"`, by what it computes in the counterfactual prompt.

    Of a site, the term that it adds to the residual stream is replaced (after its norm, if a norm follows it); of a
    unit, its keys: the activation of a neuron, or z of a head. An expert is replaced at the tokens that are routed to
    it, with the mean over the neutral tokens that are routed to it.

    The method "exact" runs the model once per part and batch. The others estimate the effects of all parts at once, as
    the sum of dD/dx (x - x') over the positions at which x is replaced by x':

    * method="attribution": with the gradient at the original input, from one forward and one backward pass;
    * method="integrated": with the mean of the gradients at `steps` inputs between the counterfactual input and the
      original one (EAP-IG). The counterfactual input replaces the token embeddings at the same positions in the same
      way: by their mean over neutral text, by zero, or by those of the other text.

    Args:
        lm: the model, with the interventions that are applied to it; it is left unchanged.
        pairs: a paired contrast set, preferably held out from every score; or the result of `first_differences_of`,
            whose mean is over the prompts with the neutral words.
        sites: layers, as [3, 4]; sites, as [Site(3, "attention")]; or units, as [(Site(3, "attention"), 5)].
        by: what replaces each part.
        method: "exact", "attribution" or "integrated".
        over: "first" or "ending"; by default "first", except for by="counterfactual" without counterfactual prompts.
        steps: number of gradients for method="integrated", at the centres of equal steps (midpoint rule).
        draws: number of bootstrap draws and of sign flips; 0 for none. They need no further pass over the model.
        seed: seed for the draws, and for the other pairs of by="resample".
        skip_first: leave the first position unchanged and out of the mean. It can be an attention sink.
        max_length: number of tokens read from each text of a contrast set.

    Raises:
        ToxlocError: `by`, `method` or `over` is unknown, or they cannot be combined; there are no parts, sites mixed
            with units, or parts that the model does not have or that cannot be patched; the set is not paired, or fewer
            than two pairs share a prefix and then differ.

    Source: activation patching (Vig et al. 2020, arXiv:2004.12265), attribution patching (Syed et al. 2023,
    arXiv:2310.10348), integrated gradients of inputs (Hanna et al. 2024, arXiv:2403.17806), and the baselines of MIB
    (Mueller et al. 2025, arXiv:2504.13151).

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> lm, pairs = load_model(), load_contrast().limited(40)
        >>> exact, estimate = (patch(lm, pairs, [3, 4], method=method) for method in ("exact", "attribution"))
        >>> exact.effect.shape, exact.uncertainty.p_adjusted.shape, estimate.units[3].shape
        ((2,), (2,), (1024,))
    """
    lm = LoadedModel.of(lm)
    for name, value, known in (("by", by, BASELINES), ("method", method, METHODS), ("over", over or "first", SPANS)):
        if value not in known:
            raise ToxlocError(f"{name}={value!r}: choose one of {', '.join(known)}.")
    draws, seed, steps = whole_number(draws, "draws"), whole_number(seed, "seed"), whole_number(steps, "steps", 1)
    replaced = replaced_parts(lm, sites, by)
    if method == "integrated":
        _check_integrable(replaced)
    given = pairs if isinstance(pairs, FirstDifferences) else first_differences(lm, pairs, max_length)
    usable = given.usable
    if over is None:
        over = "ending" if by == "counterfactual" and not given.have_counterfactuals else "first"
    if by == "counterfactual" and over == "first" and not given.have_counterfactuals:
        raise ToxlocError(
            "by='counterfactual' has no effect at the first difference, because both texts of a pair are the same up "
            "to it; leave over= out, choose another by, or give counterfactual prompts with first_differences_of."
        )
    neutral: Sequence[Row] = ()
    if by == "mean":
        neutral = (
            [pair.neutral_row for pair in usable]
            if isinstance(pairs, FirstDifferences)
            else encode_rows(lm, pairs.neutral, max_length)
        )
    reader = PairReader(lm, usable, by, over, seed=seed, skip_first=skip_first, gradients=method != "exact")
    group, units = groups_of_pairs(len(usable)), None
    if method == "exact":
        if by == "mean":
            activations = list(dict.fromkeys(part.activation for part in replaced))
            read_means(lm, activations, neutral, skip_first=skip_first)
        sums, total = _exact_effects(replaced, reader, group)
    else:
        sums, total, units = estimated_effects(
            lm, replaced, reader, group, neutral, steps if method == "integrated" else 0
        )
    counts = np.bincount(group).astype(np.float64)
    effect, uncertainty = estimate_over_pairs(sums, counts, draws, seed)
    return Patching(
        tuple(part.part for part in replaced),
        by,
        method,
        over,
        len(usable),
        given.n_left_out,
        total / len(usable),
        effect,
        uncertainty,
        units,
    )


@torch.inference_mode()
def _exact_effects(
    parts: Sequence[ReplacedPart], reader: PairReader, group: Int64[np.ndarray, " n_pairs"]
) -> tuple[Float64[np.ndarray, "groups n_parts"], float]:
    """Return the sums of the effects over the pairs of each group, and the sum of D over all pairs."""
    sums, total = np.zeros((int(group.max()) + 1, len(parts))), 0.0
    for index in track(reader.groups(), f"patching by {reader.by}"):
        batch = reader.batch(index)
        intact = batch.difference()
        total += float(intact.sum())
        for i, part in enumerate(parts):
            with part.placed(batch.replacement):
                np.add.at(sums[:, i], group[index], (intact - batch.difference()).numpy())
    return sums, total


def _check_integrable(parts: Sequence[ReplacedPart]) -> None:
    """Check that there are no experts that a router chooses.

    Raises:
        ToxlocError: a part is such an expert.
    """
    for part in parts:
        if part.view.bank is not None:
            raise ToxlocError(
                f"{part.view.site.title} is an expert that a router chooses, and other inputs send other tokens to it; "
                "estimate its effect with method='attribution' instead of method='integrated'."
            )
