"""Promoted tokens: the tokens whose logits a neuron raises."""

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
from ..models.sites import AnySite, Site, unit_of
from ..support.arguments import as_list
from ..support.masking import mask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Promoted:
    """The tokens that one neuron makes more (or less) likely.

    Attributes:
        site, neuron: the neuron, whose row of the site's W writes to the residual stream.
        tokens: the tokens, unmasked, strongest effect first.
        scores: change of the logits per unit of activation, up to the scale of the final norm; negative for lowered
            logits.
    """

    site: Site
    neuron: int
    tokens: list[str]
    scores: Float64[np.ndarray, " k"]

    @property
    def layer(self) -> int:
        """Layer of the neuron."""
        return self.site.layer

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display, masked by default."""
        return [mask(token) for token in self.tokens] if masked else list(self.tokens)

    def to_frame(self, masked: bool = True) -> "pd.DataFrame":
        """Return a table with one row per token: layer, neuron, token, score."""
        import pandas as pd

        return pd.DataFrame(
            {"layer": self.layer, "neuron": self.neuron, "token": self.shown(masked), "score": self.scores}
        )

    def __repr__(self) -> str:
        return f"Promoted({self.site.title}, neuron {self.neuron}: {', '.join(map(repr, self.shown()))})"


def promoted_tokens(
    lm: LoadedModel, neurons: Sequence[tuple[AnySite, int]], k: int = 10, *, sign: int = 1
) -> list[Promoted]:
    """Find the tokens whose logits a neuron raises most when it writes its row of W_out to the residual stream.

    The row is read directly through the final norm and the unembedding. The norm is linearised as the logit lens does
    for directions: the row is centred if the norm is a LayerNorm and multiplied by the gain, but not divided by the
    size of the residual stream. That size is the same for all tokens and does not change their order. A norm right
    after the MLP (gemma2, gemma3, olmo2) is linearised in the same way. The scores ignore the effect of the row on that
    size (so they are exact for a residual stream orthogonal to the row), later blocks, and a soft cap of the logits.
    Source: Geva et al. 2022, arXiv:2203.14680.

    Args:
        lm: the model.
        neurons: (layer, neuron) pairs; for an expert or a mixer, (site, unit) pairs.
        k: number of tokens per neuron.
        sign: 1 for the tokens whose logits rise most, -1 for those whose logits fall most.

    Raises:
        ToxlocError: an unknown layer or neuron, k out of range, a sign other than 1 or -1, or a model without a final
            norm.

    Example:
        >>> from toxloc import load_model
        >>> promoted_tokens(load_model(), [(3, 17)], k=4)[0].scores.shape
        (4,)
    """
    if sign not in (1, -1):
        raise ToxlocError(f"sign={sign}: give 1 for the tokens a neuron promotes, -1 for those it suppresses.")
    # An unembedding is often padded with rows beyond the tokenizer's tokens.
    unembedding = lm.unembedding[0].detach()[: len(lm.tokenizer)]
    if not 1 <= k <= len(unembedding):
        raise ToxlocError(f"k={k}: give a number from 1 to {len(unembedding)}, the number of tokens of {lm.name}.")
    promoted = []
    for site, neuron in map(unit_of, as_list(neurons, "the neurons")):
        direction = _direction(lm, site, neuron)
        direction = direction.to(unembedding.device)
        # Split, so that not all rows are converted from 16 bits to float32 at once.
        top = (sign * torch.cat([rows.float() @ direction for rows in unembedding.split(16384)])).topk(k)
        scores = sign * top.values.double().cpu().numpy()
        promoted.append(Promoted(site, neuron, [decode_token(lm, t) for t in top.indices.tolist()], scores))
    return promoted


def _direction(lm: LoadedModel, site: Site, neuron: int) -> Float[Tensor, " d_model"]:
    """Return a neuron's row of W_out as the unembedding reads it, with norms linearised."""
    lm.check_unit(site, neuron)
    if lm.at(site).width > 1:
        raise ToxlocError(f"{site.title} has heads, which write more than one direction; give neurons.")
    row = lm.W_out(site)[neuron].detach().float()
    for centres, gain in _norms_after(lm, site):
        if centres:
            row = row - row.mean()
        if gain is not None:
            row = row * gain.to(row.device)
    return row


def _norms_after(lm: LoadedModel, site: Site) -> list[tuple[bool, Tensor | None]]:
    """Return (centres, gain) of the norm after the MLP, if there is one, and of the final norm; a gain can be None."""
    view = lm.at(site)
    if lm.hf is None:
        norms = [*([lm.hooked.blocks[site.layer].ln2_post] if view.has_norm else []), lm.hooked.ln_final]
        return [(type(norm).__name__.startswith("LayerNorm"), getattr(norm, "w", None)) for norm in norms]
    norms = [*([view.norm] if view.norm is not None else []), lm.final_norm]
    return [(_centres(norm), _gain(norm)) for norm in norms]


def _centres(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean."""
    return isinstance(norm, nn.LayerNorm) or ("LayerNorm" in type(norm).__name__ and "RMS" not in type(norm).__name__)


def _gain(norm: nn.Module) -> Tensor | None:
    weight = getattr(norm, "weight", None)
    return norm_offset(norm) + weight.detach().float() if isinstance(weight, Tensor) else None
