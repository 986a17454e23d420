"""What an intervention costs: perplexity, and how far the next-token distribution moved, against the unedited model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.batching import batches
from ...models.likelihood import logit_rows, predicting, targets, token_nll
from ...models.loaded import LoadedModel
from .perplexity import exp, some


@dataclass(frozen=True)
class Fluency:
    """Language quality on one set of texts.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        perplexity_ratio: that over the unedited model's; 1 if nothing is applied.
        kl: mean over tokens of KL(unedited || edited) of the next-token distribution, in nats.
        top_1: share of tokens at which the most likely next token is still the unedited model's.
        n_tokens: predicted tokens.
    """

    perplexity: float
    perplexity_ratio: float
    kl: float
    top_1: float
    n_tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name."""
        return asdict(self)


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
    edited = unedited = divergence = same = 0.0
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
        unedited, edited = unedited + sums[0], edited + sums[1]
        divergence, same = divergence + sums[2], same + sums[3]
    count = some(count)
    if not lm.applied:
        unedited, same = edited, count
    return Fluency(exp(edited / count), exp((edited - unedited) / count), divergence / count, same / count, count)


class Unedited:
    """What the model as it is now says of some texts, kept, so that each edit is compared with it in one pass.

    Kept are the final hidden states, [n_tokens, d_model], on the model's device.

    Args:
        lm: the model.
        texts: what to compare on.
        kl: measure KL and top-1 too; without it nothing but the perplexity is kept, and `compare` gives nan for them.
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
        some(self._count)

    @torch.inference_mode()
    def compare(self) -> Fluency:
        """Compare the model as it is now."""
        edited, divergence, same = 0.0, *((0.0, 0.0) if self.kl else (math.nan, math.nan))
        for i, batch in enumerate(self._batches):
            now, token = predicting(self.lm, batch), targets(batch)
            if self.kl:
                _, nll, kl, top_1 = _compare(self.lm, self._hidden[i], now, token)
                edited, divergence, same = edited + nll, divergence + kl, same + top_1
            else:
                edited += token_nll(self.lm, now, token).sum().item()
        n = self._count
        return Fluency(exp(edited / n), exp((edited - self._nll) / n), divergence / n, same / n, n)


def _compare(lm: LoadedModel, before: Float[Tensor, "n d_model"], now: Float[Tensor, "n d_model"],
             token: Int[Tensor, " n"]) -> tuple[float, float, float, int]:
    """Return the summed NLL before and now, the summed KL(before || now), and where the most likely token is the same.

    No intervention edits the unembedding, so both are read through it as it is.
    """
    nll_before = nll_now = divergence = 0.0
    same = 0
    for (rows, q), (_, p) in zip(logit_rows(lm, now), logit_rows(lm, before), strict=True):
        p, q, own = p.log_softmax(-1), q.log_softmax(-1), token[rows, None]
        nll_before -= p.gather(1, own).sum().item()
        nll_now -= q.gather(1, own).sum().item()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        divergence += (p.exp() * (p - q)).sum().item()
    return nll_before, nll_now, divergence, same
