"""Drawing the next token, so that a completion depends on its own seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

NUMBERS_AT_ONCE = 2**19  # logits looked at; a processor's cache holds them
FEW = 512  # tokens among which the nucleus is looked for first


@dataclass(frozen=True)
class Sampler:
    """Chooses the next token of each row.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: the smallest set of tokens with this probability is drawn from.
        repetition_penalty: logits of tokens that a text holds already are divided by it if positive, else multiplied
            (Keskar et al. 2019, arXiv:1909.05858).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __call__(self, scores: Float[Tensor, "rows d_vocab"], noise: Sequence[torch.Generator],
                 ids: Int[Tensor, "rows pos"], mask: Int[Tensor, "rows pos"]) -> Int[Tensor, " rows"]:
        """Choose, with a generator per row on their device; `ids` are the texts so far, `mask` is 1 at real tokens."""
        if self.repetition_penalty != 1:
            said = ids.where(mask.bool(), ids[:, -1:])
            scores = RepetitionPenaltyLogitsProcessor(self.repetition_penalty)(said, scores)
        if self.temperature == 0:
            return scores.argmax(1)
        if self.temperature != 1:
            scores = scores / self.temperature
        n = scores.shape[1]
        rows = max(1, NUMBERS_AT_ONCE // n)
        return torch.cat([
            draw(some, torch.stack([torch.rand(n, generator=one, device=one.device) for one in noise[at : at + rows]]),
                 self.top_p)
            for at, some in zip(range(0, len(noise), rows), scores.split(rows), strict=True)])


def draw(scores: Float[Tensor, "rows d_vocab"], uniform: Float[Tensor, "rows d_vocab"],
         top_p: float = 1.0, few: int = FEW) -> Int[Tensor, " rows"]:
    """Draw a token per row from softmax(scores), cut to the smallest set of tokens with probability `top_p`.

    argmax(scores + Gumbel noise) is distributed as softmax(scores) (Gumbel 1954), the noise being -log(-log(uniform)).
    The `few` most likely tokens almost always hold the nucleus; for rows where they do not, more are looked at.

    Example:
        >>> draw(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([1])
    """
    if top_p == 1:
        return (scores + _gumbel(uniform)).argmax(1)
    likely, token = scores.topk(min(few, scores.shape[1]))
    shares = (likely - scores.logsumexp(-1, keepdim=True)).exp()
    ahead = shares.cumsum(-1) - shares  # probability of the tokens more likely than this one
    noisy = (likely + _gumbel(uniform.gather(1, token))).masked_fill(ahead >= top_p, -torch.inf)
    drawn = token.gather(1, noisy.argmax(1, keepdim=True))[:, 0]
    wider = ahead[:, -1] < top_p
    if few < scores.shape[1] and bool(wider.any()):
        drawn[wider] = draw(scores[wider], uniform[wider], top_p, 8 * few)
    return drawn


def _gumbel(uniform: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
