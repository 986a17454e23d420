"""Which tokens a neuron promotes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..errors import ToxlocError
from ..models.architectures import final_norm
from ..models.batching import decode_token
from ..models.loaded import LoadedModel
from ..support.masking import mask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Promoted:
    """The tokens that one neuron makes more (or less) likely.

    Attributes:
        layer, neuron: which one; its row of W_out writes to the residual stream.
        tokens: raw, strongest first.
        scores: logits per unit of activation, up to the scale of the final norm; negative if they are lowered.
    """

    layer: int
    neuron: int
    tokens: list[str]
    scores: Float64[np.ndarray, " k"]

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display."""
        return [mask(token) for token in self.tokens] if masked else list(self.tokens)

    def to_frame(self, masked: bool = True) -> "pd.DataFrame":
        """One row a token: layer, neuron, token, score."""
        import pandas as pd

        return pd.DataFrame(
            {"layer": self.layer, "neuron": self.neuron, "token": self.shown(masked), "score": self.scores}
        )

    def __repr__(self) -> str:
        return f"Promoted(layer {self.layer}, neuron {self.neuron}: {', '.join(map(repr, self.shown()))})"


def promoted_tokens(
    lm: LoadedModel, neurons: Sequence[tuple[int, int]], k: int = 10, *, sign: int = 1
) -> list[Promoted]:
    """Find the tokens whose logits a neuron raises most when it writes its row of W_out to the residual stream.

    The row goes straight to the unembedding, through the final norm linearised as the logit lens does for directions:
    centred if it is a LayerNorm, times the gain, divided by nothing. What a norm divides by, the size of the residual
    stream, is one for all tokens and does not change their order. A norm right after the MLP (gemma2, gemma3, olmo2)
    is linearised in the same way. Left out are the row's own effect on that size (so scores are exact for a stream
    orthogonal to it), later blocks, and a soft cap of the logits. Source: Geva et al. 2022, arXiv:2203.14680.

    Args:
        lm: the model.
        neurons: (layer, neuron) pairs.
        k: tokens a neuron.
        sign: 1 for the tokens it raises most, -1 for those it lowers most.

    Raises:
        ToxlocError: no such layer or neuron, k out of range, another sign, a model without a final norm.

    Example:
        >>> from toxloc import load_model
        >>> promoted_tokens(load_model(), [(3, 17)], k=4)[0].scores.shape
        (4,)
    """
    if sign not in (1, -1):
        raise ToxlocError(f"sign={sign}: give 1 for the tokens a neuron promotes, -1 for those it suppresses.")
    # Vocabularies are often padded beyond the real tokens. The rows are split, so that not all of them are turned from
    # 16 bits to 32 at once.
    unembedding = lm.unembedding[0].detach()[: len(lm.tokenizer)]
    if not 1 <= k <= len(unembedding):
        raise ToxlocError(f"k={k}: {lm.name} has 1 to {len(unembedding)} tokens to choose from.")
    promoted = []
    for layer, neuron in neurons:
        direction = _direction(lm, layer, neuron)
        direction = direction.to(unembedding.device)
        top = (sign * torch.cat([rows.float() @ direction for rows in unembedding.split(16384)])).topk(k)
        scores = sign * top.values.double().cpu().numpy()
        promoted.append(Promoted(layer, neuron, [decode_token(lm, t) for t in top.indices.tolist()], scores))
    return promoted


def _direction(lm: LoadedModel, layer: int, neuron: int) -> Float[Tensor, " d_model"]:
    """Return what the unembedding reads of a neuron's row of W_out, with norms linearised."""
    lm.check_unit(layer, neuron)
    row = lm.W_out(layer)[neuron].detach().float()
    for centres, gain in _norms_after(lm, layer):
        if centres:
            row = row - row.mean()
        if gain is not None:
            row = row * gain.to(row.device)
    return row


def _norms_after(lm: LoadedModel, layer: int) -> list[tuple[bool, Tensor | None]]:
    """For the norm after the MLP, if there is one, and the final norm: whether it centres, and its gain, if any."""
    view = lm.at(layer)
    if lm.hf is None:
        norms = [*([lm.hooked.blocks[layer].ln2_post] if view.has_norm else []), lm.hooked.ln_final]
        return [(type(norm).__name__.startswith("LayerNorm"), getattr(norm, "w", None)) for norm in norms]
    norms = [*([view.norm] if view.norm is not None else []), final_norm(lm.hf)]
    return [
        (
            isinstance(norm, nn.LayerNorm),
            view.norm_offset + norm.weight.detach().float() if isinstance(norm.weight, Tensor) else None,
        )
        for norm in norms
    ]
