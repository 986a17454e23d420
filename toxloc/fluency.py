"""What an intervention costs: perplexity on everyday text, and how far the next-token distribution moved."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .batching import batches
from .errors import ToxlocError
from .likelihood import logit_rows, predicting, summed_nll, targets, token_nll
from .model import LoadedModel


@dataclass(frozen=True)
class Fluency:
    """Language quality on one set of texts.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        perplexity_ratio: that over the unedited model's; 1 if nothing is applied.
        kl: mean over tokens of KL(unedited || edited) of the next-token distribution, in nats.
        n_tokens: predicted tokens.
    """

    perplexity: float
    perplexity_ratio: float
    kl: float
    n_tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name."""
        return asdict(self)


@torch.inference_mode()
def mean_nll(lm: LoadedModel, texts: Sequence[str], max_length: int = 256, describe: str = "perplexity") -> float:
    """Mean negative log-likelihood per predicted token, in nats, of the model as it is now.

    Each text is read alone from its first token, with padding masked.

    Raises:
        ToxlocError: no text has two tokens.
    """
    total, count = 0.0, 0
    for batch in batches(lm, texts, max_length=max_length, describe=describe):
        loss, n = summed_nll(lm, batch)
        total, count = total + loss.item(), count + n
    return total / _some(count)


@torch.inference_mode()
def nll_per_text(lm: LoadedModel, texts: Sequence[str], max_length: int = 128
                 ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Summed negative log-likelihood of each text, in nats, and how many of its tokens are predicted."""
    nll, predicted = np.zeros(len(texts)), np.zeros(len(texts))
    for batch in batches(lm, texts, max_length=max_length, describe="NLL"):
        losses = token_nll(lm, predicting(lm, batch), targets(batch))
        counts = batch.mask[:, 1:].sum(1).cpu()
        nll[batch.index] = [one.double().sum().item() for one in losses.cpu().split(counts.tolist())]
        predicted[batch.index] = counts.numpy()
    return nll, predicted


@torch.inference_mode()
def measure_fluency(lm: LoadedModel, texts: Sequence[str], *, max_length: int = 256) -> Fluency:
    """Compare the model as it is now with the same model without its interventions, batch by batch.

    Raises:
        ToxlocError: no text has two tokens.

    Example:
        >>> from toxloc import load_model
        >>> measure_fluency(load_model(), ["The cat sat on the mat."]).perplexity_ratio
        1.0
    """
    edited = unedited = divergence = 0.0
    count = 0
    for batch in batches(lm, texts, max_length=max_length, describe="perplexity and KL"):
        now, token = predicting(lm, batch), targets(batch)
        count += len(token)
        if not lm.applied:
            edited += token_nll(lm, now, token).sum().item()
            continue
        with lm.unedited():
            before = predicting(lm, batch)
        sums = _compare(lm, before, now, token)
        unedited, edited, divergence = unedited + sums[0], edited + sums[1], divergence + sums[2]
    if not lm.applied:
        unedited = edited
    count = _some(count)
    return Fluency(_exp(edited / count), _exp((edited - unedited) / count), divergence / count, count)


class Unedited:
    """What the model as it is now says of some texts, kept, so that each edit is compared with it in one pass.

    Kept are the final hidden states, [n_tokens, d_model], on the model's device.

    Args:
        lm: the model.
        texts: what to compare on.
        kl: measure the KL too; without it nothing but the perplexity is kept, and `compare` gives a KL of nan.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: no text has two tokens.

    Example:
        >>> unedited = Unedited(lm, neutral.tune)                          # doctest: +SKIP
        >>> with edit.applied(lm): unedited.compare().perplexity_ratio     # doctest: +SKIP
    """

    @torch.inference_mode()
    def __init__(self, lm: LoadedModel, texts: Sequence[str], *, kl: bool = True, max_length: int = 256):
        self.lm, self.kl = lm, kl
        self._batches = list(batches(lm, texts, max_length=max_length, describe="perplexity"))
        self._hidden = []
        self._nll, self._count = 0.0, 0
        for batch in self._batches:
            hidden, token = predicting(lm, batch), targets(batch)
            self._nll += token_nll(lm, hidden, token).sum().item()
            self._count += len(token)
            if kl:
                self._hidden.append(hidden)
        _some(self._count)

    @torch.inference_mode()
    def compare(self) -> Fluency:
        """Compare the model as it is now."""
        edited, divergence = 0.0, 0.0 if self.kl else math.nan
        for i, batch in enumerate(self._batches):
            now, token = predicting(self.lm, batch), targets(batch)
            if self.kl:
                _, nll, kl = _compare(self.lm, self._hidden[i], now, token)
                edited, divergence = edited + nll, divergence + kl
            else:
                edited += token_nll(self.lm, now, token).sum().item()
        n = self._count
        return Fluency(_exp(edited / n), _exp((edited - self._nll) / n), divergence / n, n)


def _compare(lm: LoadedModel, before: Float[Tensor, "n d_model"], now: Float[Tensor, "n d_model"],
             token: Int[Tensor, " n"]) -> tuple[float, float, float]:
    """Return the summed NLL before and now, and the summed KL(before || now).

    No intervention edits the unembedding, so both are read through it as it is.
    """
    nll_before = nll_now = divergence = 0.0
    for (rows, q), (_, p) in zip(logit_rows(lm, now), logit_rows(lm, before), strict=True):
        p, q, own = p.log_softmax(-1), q.log_softmax(-1), token[rows, None]
        nll_before -= p.gather(1, own).sum().item()
        nll_now -= q.gather(1, own).sum().item()
        divergence += (p.exp() * (p - q)).sum().item()
    return nll_before, nll_now, divergence


def _exp(value: float) -> float:
    """Exp that says inf where a float is too small to hold it (a destroyed model)."""
    return math.exp(value) if value < 700 else math.inf


def _some(count: int) -> int:
    if count == 0:
        raise ToxlocError("No text has two tokens, so there is no perplexity; give longer texts.")
    return count
