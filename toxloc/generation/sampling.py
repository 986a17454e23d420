"""Draw the next token of each row, with one random generator per row.

toxloc implements temperature and nucleus sampling itself, instead of using the logits processors of transformers, for
two reasons. With a generator per row, a completion depends only on its seed, not on the batch. And searching the
nucleus among the most likely tokens gives the same nucleus without sorting the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

LOGITS_AT_ONCE = 2**19  # number of logits to process at a time, so that they fit in a processor's cache
CANDIDATES = 512  # number of most likely tokens in which the nucleus is searched first


@dataclass(frozen=True)
class Sampler:
    """Chooses the next token of each row.

    Attributes:
        temperature: divisor of the logits; 0 takes the most likely token.
        top_p: draw from the smallest set of tokens with at least this probability (Holtzman et al. 2020,
            arXiv:1904.09751).
        repetition_penalty: penalty on tokens that the text already contains: positive logits are divided by it, and
            negative logits are multiplied by it (Keskar et al. 2019, arXiv:1909.05858).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __call__(
        self,
        logits: Float[Tensor, "rows d_vocab"],
        noise: Sequence[torch.Generator],
        ids: Int[Tensor, "rows pos"],
        mask: Int[Tensor, "rows pos"],
    ) -> Int[Tensor, " rows"]:
        """Choose one token per row.

        Args:
            logits: logits of the next token.
            noise: one random generator per row, on the device of the row; unused if the temperature is 0.
            ids: the texts so far.
            mask: 1 at real tokens of `ids`, 0 at padding.
        """
        if self.repetition_penalty != 1:
            present = ids.where(mask.bool(), ids[:, -1:])
            logits = RepetitionPenaltyLogitsProcessor(self.repetition_penalty)(present, logits)
        if self.temperature == 0:
            return logits.argmax(1)
        if self.temperature != 1:
            logits = logits / self.temperature
        n = logits.shape[1]
        rows = max(1, LOGITS_AT_ONCE // n)
        return torch.cat(
            [
                draw(
                    chunk,
                    torch.stack(
                        [
                            torch.rand(n, generator=generator, device=generator.device)
                            for generator in noise[start : start + rows]
                        ]
                    ),
                    self.top_p,
                )
                for start, chunk in zip(range(0, len(noise), rows), logits.split(rows), strict=True)
            ]
        )


def draw(
    logits: Float[Tensor, "rows d_vocab"],
    uniform: Float[Tensor, "rows d_vocab"],
    top_p: float = 1.0,
    candidates: int = CANDIDATES,
) -> Int[Tensor, " rows"]:
    """Draw a token per row from softmax(logits), restricted to the smallest set of tokens with probability `top_p`.

    argmax(logits + Gumbel noise) has the distribution softmax(logits) (Gumbel 1954); the noise is
    -log(-log(uniform)). The nucleus is first searched among the most likely tokens, which almost always contain it;
    rows with a larger nucleus are searched again among more tokens.

    Args:
        logits: logits of the next token.
        uniform: random numbers from 0 to 1.
        top_p: probability of the nucleus; 1 draws from all tokens.
        candidates: number of most likely tokens to search first; it does not change the result.

    Returns:
        One token id per row.

    Example:
        >>> draw(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([1])
    """
    if top_p == 1:
        return (logits + _gumbel(uniform)).argmax(1)
    likely, token = logits.topk(min(candidates, logits.shape[1]))
    probability = (likely - logits.logsumexp(-1, keepdim=True)).exp()
    before = probability.cumsum(-1) - probability  # total probability of the tokens more likely than this token
    noisy = (likely + _gumbel(uniform.gather(1, token))).masked_fill(before >= top_p, -torch.inf)
    drawn = token.gather(1, noisy.argmax(1, keepdim=True))[:, 0]
    wider = before[:, -1] < top_p
    if candidates < logits.shape[1] and bool(wider.any()):
        drawn[wider] = draw(logits[wider], uniform[wider], top_p, 8 * candidates)
    return drawn


def _gumbel(uniform: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
