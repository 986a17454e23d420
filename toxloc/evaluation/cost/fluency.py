"""Cost of an intervention: perplexity, and divergence of next-token distributions from the unedited model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.batching import batches
from ...models.likelihood import logit_rows, predicting, targets, token_nll
from ...models.loaded import LoadedModel
from .perplexity import check_count, safe_exp


@dataclass(frozen=True)
class Fluency:
    """Language quality on one set of texts.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        perplexity_ratio: perplexity divided by that of the unedited model; 1 if no intervention is applied.
        kl: mean over tokens of KL(unedited || edited) of the next-token distribution, in nats.
        top_1: share of tokens at which the most likely next token is the same as under the unedited model.
        n_tokens: number of predicted tokens.
    """

    perplexity: float
    perplexity_ratio: float
    kl: float
    top_1: float
    n_tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name."""
        return asdict(self)


@dataclass
class _Sums:
    """Sums over tokens, from which `Fluency` is computed."""

    nll: float = 0.0
    nll_unedited: float = 0.0
    kl: float = 0.0
    same: float = 0.0
    tokens: int = 0

    def add_nll(self, lm: LoadedModel, hidden: Float[Tensor, "n d_model"], token: Int[Tensor, " n"]) -> None:
        """Add the likelihood of texts, without the comparison with the unedited model."""
        self.nll += token_nll(lm, hidden, token).sum().item()
        self.tokens += len(token)

    def add(
        self,
        lm: LoadedModel,
        unedited: Float[Tensor, "n d_model"],
        edited: Float[Tensor, "n d_model"],
        token: Int[Tensor, " n"],
    ) -> None:
        """Add texts, given the final hidden states of both models.

        Interventions do not change the unembedding, so the same unembedding gives the logits of both models. Logits are
        computed for some rows at a time, since the logits of a whole batch take too much memory.
        """
        nll_unedited = nll = divergence = 0.0  # summed per batch: adding rows to the totals would round differently
        for (rows, q), (_, p) in zip(logit_rows(lm, edited), logit_rows(lm, unedited), strict=True):
            p, q, ids = p.log_softmax(-1), q.log_softmax(-1), token[rows, None]
            nll_unedited -= p.gather(1, ids).sum().item()
            nll -= q.gather(1, ids).sum().item()
            self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
            divergence += (p.exp() * (p - q)).sum().item()
        self.nll_unedited += nll_unedited
        self.nll += nll
        self.kl += divergence
        self.tokens += len(token)

    def fluency(self) -> Fluency:
        n = check_count(self.tokens)
        return Fluency(
            safe_exp(self.nll / n), safe_exp((self.nll - self.nll_unedited) / n), self.kl / n, self.same / n, n
        )


@torch.inference_mode()
def measure_fluency(lm: LoadedModel, texts: Sequence[str], *, max_length: int = 256) -> Fluency:
    """Measure the fluency of the model in its current state, compared with the unedited model batch by batch.

    Each text is read alone, with padding masked. To compare several edits on the same texts, use `Unedited`, which runs
    the unedited model on the texts only once.

    Args:
        lm: the model with its applied interventions.
        texts: texts to read.
        max_length: largest number of tokens read of each text.

    Raises:
        ToxlocError: no text has at least two tokens.

    Example:
        >>> from toxloc import load_model
        >>> measure_fluency(load_model(), ["The cat sat on the mat."]).perplexity_ratio
        1.0
    """
    sums = _Sums()
    for batch in batches(lm, texts, max_length=max_length, describe="perplexity and KL"):
        edited, token = predicting(lm, batch), targets(batch)
        if lm.interventions:
            with lm.unedited():
                unedited = predicting(lm, batch)
            sums.add(lm, unedited, edited, token)
        else:
            sums.add_nll(lm, edited, token)
    if not lm.interventions:
        sums.nll_unedited, sums.same = sums.nll, sums.tokens
    return sums.fluency()


class Unedited:
    """Snapshot of the model's current predictions on some texts, to compare edits against with one pass per edit.

    The final hidden states [n_tokens, d_model] are kept on the model's device.

    Args:
        lm: the model.
        texts: texts to compare on.
        kl: whether to measure KL and top-1 too. If False, no hidden states are kept, and `compare` gives nan for both.
        max_length: largest number of tokens read of each text.

    Raises:
        ToxlocError: no text has at least two tokens.

    Example:
        >>> unedited = Unedited(lm, neutral.tune)                          # doctest: +SKIP
        >>> with edit.applied(lm): unedited.compare().perplexity_ratio     # doctest: +SKIP
        1.01
    """

    @torch.inference_mode()
    def __init__(self, lm: LoadedModel, texts: Sequence[str], *, kl: bool = True, max_length: int = 256):
        self.lm, self.kl = lm, kl
        self._batches = list(batches(lm, texts, max_length=max_length, describe="perplexity"))
        self._hidden = []
        sums = _Sums()
        for batch in self._batches:
            hidden = predicting(lm, batch)
            sums.add_nll(lm, hidden, targets(batch))
            if kl:
                self._hidden.append(hidden)
        check_count(sums.tokens)
        self._nll = sums.nll

    @torch.inference_mode()
    def compare(self, *, kl: bool = True) -> Fluency:
        """Compare the model in its current state with the snapshot.

        Args:
            kl: whether to measure KL and top-1 too, if the snapshot has hidden states. If False, both are nan, and the
                logits of the unedited model are not computed again.
        """
        kl, sums = kl and self.kl, _Sums()
        for i, batch in enumerate(self._batches):
            edited, token = predicting(self.lm, batch), targets(batch)
            if kl:
                sums.add(self.lm, self._hidden[i], edited, token)
            else:
                sums.add_nll(self.lm, edited, token)
        sums.nll_unedited = self._nll
        if not kl:
            sums.kl = sums.same = math.nan
        return sums.fluency()
