"""Patching: replace what a part of a model computes, and measure the log-probability difference of pairs exactly.

The two texts of a pair share a prefix and then differ. D is how much more likely the model finds the toxic text's
continuation than the neutral text's. The effect of a part is D minus the D of the model in which the part is replaced:
positive where the part pushes towards the toxic text. The score `counterfactual` estimates the same to first order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Float64

from ..errors import ToxlocError
from ..localization.difference_statistics import groups_of_pairs
from ..localization.first_difference import first_differences
from ..localization.scored import estimate_over_pairs
from ..localization.uncertainty import DRAWS, Uncertainty
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import Site, Unit
from ..support.arguments import whole_number
from ..support.progress import track
from ..texts.contrast import ContrastSet
from .knockout import Parts
from .replacement import By, Over, PairReader, read_means, replaced_parts

if TYPE_CHECKING:
    import pandas as pd

BASELINES: tuple[str, ...] = get_args(By)
SPANS: tuple[str, ...] = get_args(Over)


@dataclass(frozen=True)
class Patching:
    """The effects of replacing parts of a model one by one.

    Attributes:
        parts: the sites or units, in the order in which they were given.
        by: what each part was replaced by.
        over: "first" if D compares the tokens at the first difference, in nats; "ending" if it compares everything
            after the shared prefix, in nats per token.
        n_pairs: number of pairs that D is averaged over.
        n_left_out: number of pairs without a usable first difference.
        difference: mean over pairs of D in the intact model.
        effect: mean over pairs of D minus the D of the model with the part replaced, float64 [n_parts]; positive where
            the part pushes towards the toxic text.
        uncertainty: 95% intervals of `effect`, and its null distribution, in which the two texts of a pair swap, so
            that the sign of the pair's effect changes; `p_adjusted` is adjusted for all parts. None without draws.
    """

    parts: tuple[Site | Unit, ...]
    by: str
    over: str
    n_pairs: int
    n_left_out: int
    difference: float
    effect: Float64[np.ndarray, " n_parts"]
    uncertainty: Uncertainty | None

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
    pairs: ContrastSet,
    sites: Parts,
    by: By = "mean",
    *,
    over: Over | None = None,
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
      shorter text, and D is that over the endings.

    Of a site, the term that it adds to the residual stream is replaced (after its norm, if a norm follows it); of a
    unit, its keys: the activation of a neuron, or z of a head. An expert is replaced at the tokens that are routed to
    it, with the mean over the neutral tokens that are routed to it.

    Args:
        lm: the model, with the interventions that are applied to it; it is left unchanged.
        pairs: a paired contrast set; preferably held out from every score.
        sites: layers, as [3, 4]; sites, as [Site(3, "attention")]; or units, as [(Site(3, "attention"), 5)].
        by: what replaces each part.
        over: "first" or "ending"; by default "ending" for by="counterfactual", and "first" otherwise.
        draws: number of bootstrap draws and of sign flips; 0 for none. They need no further pass over the model.
        seed: seed for the draws, and for the other pairs of by="resample".
        skip_first: leave the first position unchanged and out of the mean. It can be an attention sink.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: `by` or `over` is unknown, or they cannot be combined; there are no parts, sites mixed with units,
            or parts that the model does not have or that cannot be patched; the set is not paired, or fewer than two
            pairs share a prefix and then differ.

    Source: activation patching (Vig et al. 2020, arXiv:2004.12265), and the baselines of MIB (Mueller et al. 2025,
    arXiv:2504.13151).

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> result = patch(load_model(), load_contrast().limited(40), [3, 4], by="mean")
        >>> result.effect.shape, result.uncertainty.p_adjusted.shape
        ((2,), (2,))
    """
    lm = LoadedModel.of(lm)
    if by not in BASELINES:
        raise ToxlocError(f"by={by!r}: choose one of {', '.join(BASELINES)}.")
    if over is None:
        over = "ending" if by == "counterfactual" else "first"
    if over not in SPANS:
        raise ToxlocError(f"over={over!r}: choose one of {', '.join(SPANS)}.")
    if by == "counterfactual" and over == "first":
        raise ToxlocError(
            "by='counterfactual' has no effect at the first difference, because both texts of a pair are the same up "
            "to it; leave over= out, or choose another by."
        )
    draws, seed = whole_number(draws, "draws"), whole_number(seed, "seed")
    replaced = replaced_parts(lm, sites, by)
    usable = first_differences(lm, pairs, max_length).usable
    if by == "mean":
        read_means(lm, replaced, pairs.neutral, skip_first=skip_first, max_length=max_length)
    reader = PairReader(lm, usable, by, over, seed=seed, skip_first=skip_first)
    group = groups_of_pairs(len(usable))
    counts = np.bincount(group).astype(np.float64)
    sums, total = np.zeros((len(counts), len(replaced))), 0.0
    with torch.inference_mode():
        for index in track(reader.groups(), f"patching by {by}"):
            batch = reader.batch(index)
            intact = batch.difference()
            total += float(intact.sum())
            for i, part in enumerate(replaced):
                with part.placed(batch.replacement):
                    np.add.at(sums[:, i], group[index], intact - batch.difference())
    effect, uncertainty = estimate_over_pairs(sums, counts, draws, seed)
    return Patching(
        tuple(part.part for part in replaced),
        by,
        over,
        len(usable),
        len(pairs.toxic) - len(usable),
        total / len(usable),
        effect,
        uncertainty,
    )
