"""What an intervention costs: perplexity on everyday text, and how far the next-token distribution moved."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float64

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
        # No intervention edits the unembedding, so both are read through it as it is now.
        for (rows, q), (_, p) in zip(logit_rows(lm, now), logit_rows(lm, before), strict=True):
            p, q, own = p.log_softmax(-1), q.log_softmax(-1), token[rows, None]
            unedited -= p.gather(1, own).sum().item()
            edited -= q.gather(1, own).sum().item()
            divergence += (p.exp() * (p - q)).sum().item()
    if not lm.applied:
        unedited = edited
    count = _some(count)
    return Fluency(_exp(edited / count), _exp((edited - unedited) / count), divergence / count, count)


def _exp(value: float) -> float:
    """Exp that says inf where a float is too small to hold it (a destroyed model)."""
    return math.exp(value) if value < 700 else math.inf


def _some(count: int) -> int:
    if count == 0:
        raise ToxlocError("No text has two tokens, so there is no perplexity; give longer texts.")
    return count
