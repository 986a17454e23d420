"""Promoted tokens: the tokens whose logits a neuron or a head raises."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..errors import ToxlocError
from ..models.batching import decode_token
from ..models.loaded import LoadedModel
from ..models.site_view import norm_offset
from ..models.sites import UNITS, AnySite, Site, unit_of
from ..support.arguments import as_list, check_kind
from ..support.masking import mask
from ..texts.contrast import ContrastSet
from .scored import both_contributions
from .statistics import ContrastStatistics, collect_contrast

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Promoted:
    """The tokens that one neuron or head makes more (or less) likely.

    Attributes:
        site, neuron: the neuron, whose row of the site's W writes to the residual stream; or the head.
        tokens: the tokens, unmasked, strongest effect first.
        scores: change of the logits, up to the scale of the final norm, per unit of activation of a neuron, or from
            neutral to toxic texts for a head; negative for lowered logits.
    """

    site: Site
    neuron: int
    tokens: list[str]
    scores: Float64[np.ndarray, " k"]

    @property
    def layer(self) -> int:
        """Layer of the neuron or head."""
        return self.site.layer

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display, masked by default."""
        return [mask(token) for token in self.tokens] if masked else list(self.tokens)

    def to_frame(self, masked: bool = True) -> "pd.DataFrame":
        """Return a table with one row per token: layer, neuron (or head), token, score."""
        import pandas as pd

        unit = UNITS[self.site.part]
        return pd.DataFrame({"layer": self.layer, unit: self.neuron, "token": self.shown(masked), "score": self.scores})

    def __repr__(self) -> str:
        unit = UNITS[self.site.part]
        return f"Promoted({self.site.title}, {unit} {self.neuron}: {', '.join(map(repr, self.shown()))})"


def promoted_tokens(
    lm: LoadedModel,
    neurons: Sequence[tuple[AnySite, int]],
    k: int = 10,
    *,
    sign: int = 1,
    contrast: ContrastSet | ContrastStatistics | None = None,
) -> list[Promoted]:
    """Find the tokens whose logits a neuron raises most when it writes its row of W_out to the residual stream.

    The row is read directly through the final norm and the unembedding. The norm is linearised as the logit lens does
    for directions: the row is centred if the norm is a LayerNorm and multiplied by the gain, but not divided by the
    size of the residual stream. That size is the same for all tokens and does not change their order. A norm right
    after the MLP (gemma2, gemma3, olmo2) is linearised in the same way. The scores ignore the effect of the row on that
    size (so they are exact for a residual stream orthogonal to the row), later blocks, and a soft cap of the logits.
    Source: Geva et al. 2022, arXiv:2203.14680.

    A head has no single row. Its direction is what it writes more on toxic than on neutral texts: the difference of the
    means of its z over the tokens of both, times its rows of W_O.

    Args:
        lm: the model.
        neurons: (layer, neuron) pairs; for an expert or a mixer, (site, unit) pairs; for a head, (site, head) pairs.
        k: number of tokens per neuron.
        sign: 1 for the tokens whose logits rise most, -1 for those whose logits fall most.
        contrast: the toxic and neutral texts of heads, or their statistics from `collect_contrast` on this model. Rows
            of neurons do not depend on texts.

    Raises:
        ToxlocError: an unknown layer, neuron or head, k out of range, a sign other than 1 or -1, a model without a
            final norm, a head without `contrast`, or statistics of other sites.

    Example:
        >>> from toxloc import load_model
        >>> promoted_tokens(load_model(), [(3, 17)], k=4)[0].scores.shape
        (4,)
    """
    if sign not in (1, -1):
        raise ToxlocError(f"sign={sign}: give 1 for the tokens a neuron promotes, -1 for those it suppresses.")
    check_number_of_tokens(lm, k)
    units = [unit_of(unit) for unit in as_list(neurons, "the neurons")]
    for site, unit in units:
        lm.check_unit(site, unit)
    statistics = _statistics(lm, sorted({site for site, _ in units if lm.at(site).width > 1}), contrast)
    promoted = []
    for site, unit in units:
        direction = through_norms(lm, site, written_by_unit(lm, site, unit, statistics))
        promoted.append(Promoted(site, unit, *promoted_by_direction(lm, direction, k, sign=sign)))
    return promoted


def promoted_by_direction(
    lm: LoadedModel, direction: Float[Tensor, " d_model"], k: int = 10, *, sign: int = 1
) -> tuple[list[str], Float64[np.ndarray, " k"]]:
    """Return the k tokens whose unembedding has the largest product with a direction, and the products.

    Args:
        lm: the model.
        direction: the direction as the unembedding reads it: after the final norm (`through_norms`).
        k: number of tokens.
        sign: 1 for the largest products, -1 for the smallest.
    """
    # Split, so that not all rows are converted from 16 bits to float32 at once.
    rows = _unembedding(lm).split(16384)
    direction = direction.to(rows[0].device)
    top = (sign * torch.cat([some.float() @ direction for some in rows])).topk(k)
    return [decode_token(lm, t) for t in top.indices.tolist()], sign * top.values.double().cpu().numpy()


def check_number_of_tokens(lm: LoadedModel, k: int) -> None:
    """Check a number of tokens to return.

    Raises:
        ToxlocError: it is below 1 or more than the tokens of the model.
    """
    if not 1 <= k <= len(_unembedding(lm)):
        raise ToxlocError(f"k={k}: give a number from 1 to {len(_unembedding(lm))}, the number of tokens of {lm.name}.")


def _unembedding(lm: LoadedModel) -> Float[Tensor, "n_tokens d_model"]:
    """Return the rows of the tokenizer's tokens. An unembedding is often padded with further rows."""
    return lm.unembedding[0].detach()[: len(lm.tokenizer)]


def _statistics(
    lm: LoadedModel, sites: list[Site], contrast: ContrastSet | ContrastStatistics | None
) -> ContrastStatistics | None:
    """Return statistics of the sites whose units write more than one direction; None if there are no such sites."""
    if not sites:
        return None
    if contrast is None:
        raise ToxlocError(
            f"{sites[0].title} has heads, which write more than one direction; give contrast=pairs to read what each "
            "head writes more on toxic than on neutral texts, or give neurons."
        )
    if isinstance(contrast, ContrastSet):
        return collect_contrast(lm, contrast, sites=sites, gradients=False)
    check_kind(contrast, ContrastStatistics, "the contrast")
    both_contributions(contrast)  # the means were gathered with them
    absent = [site.title for site in sites if site not in contrast.toxic.keys]
    if absent:
        raise ToxlocError(f"The statistics lack {', '.join(absent)}; collect them with sites=lm.sites('attention').")
    return contrast


def written_by_unit(
    lm: LoadedModel, site: Site, unit: int, statistics: ContrastStatistics | None
) -> Float[Tensor, " d_model"]:
    """Return the row of W_out of a neuron, or what a head writes more on toxic than on neutral texts."""
    view = lm.at(site)
    rows = view.W[view.rows(unit)].detach().float()
    if view.width == 1:
        return rows[0]
    assert statistics is not None
    difference = (statistics.toxic.keys[site].mean - statistics.neutral.keys[site].mean)[view.rows(unit)]
    written: Tensor = difference.to(rows) @ rows
    return written


def through_norms(lm: LoadedModel, site: Site, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """Return a direction that a site writes as the unembedding reads it, with norms linearised."""
    for centres, gain in _norms_after(lm, site):
        if centres:
            direction = direction - direction.mean()
        if gain is not None:
            direction = direction * gain.to(direction.device)
    return direction


def _norms_after(lm: LoadedModel, site: Site) -> list[tuple[bool, Tensor | None]]:
    """Return (centres, gain) of the norm after the site, if there is one, and of the final norm; a gain can be None."""
    view = lm.at(site)
    if lm.hf is None:
        block = lm.hooked.blocks[site.layer]
        own = [block.ln1_post if site.part == "attention" else block.ln2_post] if view.has_norm else []
        norms = [*own, lm.hooked.ln_final]
        return [(type(norm).__name__.startswith("LayerNorm"), getattr(norm, "w", None)) for norm in norms]
    norms = [*([view.norm] if view.norm is not None else []), lm.final_norm]
    return [(_centres(norm), _gain(norm)) for norm in norms]


def _centres(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean."""
    return isinstance(norm, nn.LayerNorm) or ("LayerNorm" in type(norm).__name__ and "RMS" not in type(norm).__name__)


def _gain(norm: nn.Module) -> Tensor | None:
    weight = getattr(norm, "weight", None)
    return norm_offset(norm) + weight.detach().float() if isinstance(weight, Tensor) else None
