"""Driving texts: the texts in which a neuron is most active."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ToxlocError
from ..models.batching import batches, decode_token
from ..models.loaded import LoadedModel
from ..support.masking import mask
from ..texts.drawing import check_texts


@dataclass(frozen=True, repr=False)
class Driven:
    """A text in which a neuron is highly active.

    Attributes:
        text: the text, unmasked.
        index: index of the text in the list of texts.
        activation: largest activation of the neuron in the text, at hook_post.
        token, position: token with this activation, unmasked, and its position, counted from the BOS token if there is
            one.
    """

    text: str
    index: int
    activation: float
    token: str
    position: int

    def shown(self, masked: bool = True) -> str:
        """Return the text for display, masked by default."""
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
    """Find the k texts with the largest peak activation of a neuron, largest first, in one streaming pass.

    Args:
        lm: the model.
        texts: at least one text, none empty.
        layer: layer of the neuron.
        neuron: index of the neuron in its layer; its activation is read at hook_post.
        k: number of texts to return; fewer are returned if fewer texts have a token that counts.
        skip_first: leave out the first position, which can be an attention sink.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: no texts, an empty text, an unknown layer or neuron, or k below 1.

    Example:
        >>> from toxloc import load_model
        >>> len(driving_texts(load_model(), ["The sun is out.", "Good morning."], layer=3, neuron=17, k=1))
        1
    """
    lm.check_unit(layer, neuron)
    if lm.at(layer).bank is not None:
        raise ToxlocError(f"{lm.at(layer).site.title} is an expert; driving_texts reads MLPs, attentions and mixers.")
    texts = check_texts(texts)
    if not texts or k < 1:
        raise ToxlocError(f"k={k} of {len(texts)} texts: give at least one text, and a k of 1 or more.")
    best: list[tuple[float, int, int, int]] = []  # activation, index, position, token id
    seen: list[Tensor] = []
    with torch.inference_mode(), lm.hooks([(lm.at(layer).keys_hook, seen.append)]):
        for batch in batches(lm, texts, max_length=max_length, describe="looking for texts"):
            lm.forward_hidden(batch.ids, batch.mask)
            kept = batch.counted.clone()
            kept[:, 0] &= not skip_first
            a = seen.pop().view(*kept.shape, -1)[..., neuron].float()
            peak, position = a.masked_fill(~kept, -torch.inf).max(1)
            token = batch.ids.gather(1, position[:, None])[:, 0]
            rows = zip(peak.tolist(), batch.index, position.tolist(), token.tolist(), strict=True)
            best = sorted([*best, *(row for row in rows if row[0] > -torch.inf)], key=lambda row: -row[0])[:k]
    return [
        Driven(texts[i], i, activation, decode_token(lm, token), position) for activation, i, position, token in best
    ]
