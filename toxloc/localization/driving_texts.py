"""Which texts drive a neuron highest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ToxlocError
from ..models.batching import batches, decode_token
from ..models.loaded import LoadedModel
from ..support.masking import mask

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, repr=False)
class Driven:
    """A text that drives a neuron.

    Attributes:
        text: raw.
        index: its place among the texts given.
        activation: the neuron's largest in it (hook_post).
        token, position: where that is; the token raw, the position counted from the BOS token where there is one.
    """

    text: str
    index: int
    activation: float
    token: str
    position: int

    def shown(self, masked: bool = True) -> str:
        """Return the text for display."""
        return mask(self.text) if masked else self.text

    def __repr__(self) -> str:
        return f"Driven({self.activation:.3g} at {mask(self.token)!r} in text {self.index}: {self.shown()!r})"


def driving_texts(
    lm: LoadedModel,
    texts: Sequence[str],
    layer: int,
    neuron: int,
    k: int = 5,
    *,
    skip_first: bool = True,
    max_length: int = 128,
) -> list[Driven]:
    """Find the k texts in which a neuron's activation peaks highest, highest first. One streaming pass.

    Args:
        lm: the model.
        texts: at least one, none empty.
        layer: where the neuron is.
        neuron: which one; its activation is taken at hook_post.
        k: texts to return; fewer come back if fewer have a token to see.
        skip_first: leave the first position out, which can be an attention sink.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: no texts, an empty text, no such layer or neuron, k below 1.

    Example:
        >>> from toxloc import load_model
        >>> len(driving_texts(load_model(), ["The sun is out.", "Good morning."], layer=3, neuron=17, k=1))
        1
    """
    lm.check_unit(layer, neuron)
    if not texts or k < 1:
        raise ToxlocError(f"Asked for {k} of {len(texts)} texts; ask for one or more, and give some to choose from.")
    best: list[tuple[float, int, int, int]] = []  # activation, index, position, token id
    seen: list[Tensor] = []
    with torch.inference_mode(), lm.hooks([(lm.at(layer).keys_hook, seen.append)]):
        for batch in batches(lm, texts, max_length=max_length, describe="looking for texts"):
            lm.forward_hidden(batch.ids, batch.mask)
            kept = batch.real.clone()
            kept[:, 0] &= not skip_first
            a = seen.pop().view(*kept.shape, -1)[..., neuron].float()
            peak, position = a.masked_fill(~kept, -torch.inf).max(1)
            token = batch.ids.gather(1, position[:, None])[:, 0]
            rows = zip(peak.tolist(), batch.index, position.tolist(), token.tolist(), strict=True)
            best = sorted([*best, *(row for row in rows if row[0] > -torch.inf)], key=lambda row: -row[0])[:k]
    return [
        Driven(texts[i], i, activation, decode_token(lm, token), position) for activation, i, position, token in best
    ]
