"""Batches of pairs: their tokens, the log-probability difference D, and which values replace those of a part.

New values that another text provides are computed in the same forward pass, as further rows of the batch, so nothing is
stored between passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..models.batching import Batch, groups_of_rows, pad
from ..models.likelihood import token_nll
from ..models.loaded import LoadedModel
from .first_difference import FirstDifference

By = Literal["mean", "counterfactual", "resample", "zero"]
Over = Literal["first", "ending"]
CONSTANT = ("mean", "zero")


@dataclass(frozen=True)
class Replacement:
    """What to replace in one batch.

    Attributes:
        where: the positions to replace.
        row: row of the same batch that the new value of each position is read from; None for a constant.
        position: position in that row; None for a constant.
    """

    where: Bool[Tensor, "rows pos"]
    row: Int[Tensor, "rows pos"] | None = None
    position: Int[Tensor, "rows pos"] | None = None

    def new_values(
        self, own: Float[Tensor, "rows pos d"], constant: Float[Tensor, " d"]
    ) -> Float[Tensor, "rows pos d"]:
        """Return the new values of all positions: `constant`, or those of other positions of the batch."""
        if self.row is None or self.position is None:
            return constant.to(own).expand_as(own)
        return own[self.row.to(own.device), self.position.to(own.device)]

    def change(self, own: Float[Tensor, "rows pos d"], constant: Float[Tensor, " d"]) -> Float[Tensor, "rows pos d"]:
        """Return the old values minus the new values in float32; 0 where nothing is replaced."""
        own = own.float()
        return (own - self.new_values(own, constant)).mul_(self.where.to(own.device)[..., None])


@dataclass(frozen=True)
class PairBatch:
    """Some pairs as one batch of tokens.

    Its rows are the prefixes, or, if D is that over the endings, the toxic texts and then the neutral texts. As many
    rows of the texts that provide new values can follow.

    Attributes:
        lm: the model.
        pairs: the pairs.
        tokens: the right-padded rows.
        over: "first" or "ending".
        replacement: what to replace.
    """

    lm: LoadedModel
    pairs: Sequence[FirstDifference]
    tokens: Batch
    over: Over
    replacement: Replacement

    @property
    def n_rows(self) -> int:
        """Number of rows that D is read from."""
        return len(self.pairs) * (1 if self.over == "first" else 2)

    def without_donors(self) -> "PairBatch":
        """Return the batch without the rows that only provide new values."""
        n, tokens = self.n_rows, self.tokens
        return replace(self, tokens=Batch(tokens.ids[:n], tokens.mask[:n], tokens.index))

    def difference(self) -> Float64[Tensor, " n"]:
        """Return D of every pair in the model with its current hooks.

        It is differentiable with respect to tensors that hooks on `lm.hooked` put into the graph.
        """
        lm, n, real = self.lm, self.n_rows, self.tokens.real[: self.n_rows]
        begins = torch.tensor([len(pair.prefix) for pair in self.pairs] * (n // len(self.pairs)), device=lm.device)
        hidden = lm.forward_hidden(self.tokens.ids, self.tokens.mask)[:n]
        if self.over == "first":
            hidden = hidden[torch.arange(n, device=lm.device), begins - 1]
            nll = token_nll(lm, torch.cat([hidden, hidden]), first_tokens(lm, self.pairs).flatten())
            mean = nll.cpu().double()
        else:
            predicted = (torch.arange(1, real.shape[1], device=lm.device) >= begins[:, None]) & real[:, 1:]
            nll = token_nll(lm, hidden[:, :-1][predicted], self.tokens.ids[:n, 1:][predicted]).cpu().double()
            row, counts = predicted.nonzero()[:, 0].cpu(), predicted.sum(1).cpu()
            mean = torch.zeros(n, dtype=torch.float64).index_add(0, row, nll) / counts
        difference: Tensor = mean[len(self.pairs) :] - mean[: len(self.pairs)]
        return difference

    def per_pair(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "n d"]:
        """Sum over the rows of each pair."""
        summed: Tensor = rows.unflatten(0, (-1, len(self.pairs))).sum(0)
        return summed


def first_tokens(lm: LoadedModel, pairs: Sequence[FirstDifference]) -> Int[Tensor, "2 n"]:
    """Return the toxic and the neutral token of every pair at its first difference."""
    tokens = [[getattr(pair, side)[0] for pair in pairs] for side in ("toxic", "neutral")]
    return torch.tensor(tokens, device=lm.device)


class PairReader:
    """Makes the batches of pairs for one way of replacing.

    Args:
        lm: the model.
        pairs: the pairs, at least two for by="resample".
        by: what replaces the parts.
        over: what D compares.
        seed: seed for the other pairs of by="resample".
        skip_first: leave the first position unchanged.
        gradients: whether the batches are for a backward pass.
    """

    def __init__(
        self,
        lm: LoadedModel,
        pairs: Sequence[FirstDifference],
        by: By,
        over: Over,
        *,
        seed: int = 0,
        skip_first: bool,
        gradients: bool = False,
    ):
        self.lm, self.pairs, self.by, self.over = lm, pairs, by, over
        self.skip_first, self.gradients = skip_first, gradients
        self.other = np.arange(len(pairs))
        if by == "resample":
            shift = np.random.default_rng([seed, 3]).integers(1, len(pairs), size=len(pairs))
            self.other = (self.other + shift) % len(pairs)

    def rows(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the rows of tokens of some pairs."""
        chosen = [self.pairs[i] for i in index]
        if self.over == "first":
            return [pair.prefix for pair in chosen]
        return [pair.prefix + pair.toxic for pair in chosen] + [pair.prefix + pair.neutral for pair in chosen]

    def donors(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the rows that only provide new values to `rows(index)`, one each or none at all."""
        if self.by == "resample":
            return self.rows([int(self.other[i]) for i in index])
        if self.by == "counterfactual" and self.over == "first":
            return [self.pairs[i].counterfactual or () for i in index]
        return []

    def groups(self) -> list[list[int]]:
        """Return the indices of the pairs of each batch."""
        copies = 2 if self.donors([0]) else 1
        per_pair = [self.rows([i]) for i in range(len(self.pairs))]
        sizes = [copies * len(rows) * max(map(len, rows)) for rows in per_pair]
        return groups_of_rows(self.lm, sizes, gradients=self.gradients)

    def batch(self, index: list[int]) -> PairBatch:
        """Return some pairs as one batch."""
        chosen, rows, donors = [self.pairs[i] for i in index], self.rows(index), self.donors(index)
        width = max(map(len, rows))  # tokens of donors after the longest row would not be used
        tokens = pad(self.lm, [*rows, *(row[:width] for row in donors)], index, "right")
        where = without_first(tokens.real) if self.skip_first else tokens.real.clone()
        for i, pair in enumerate(chosen * (len(rows) // len(chosen))):
            where[i, list(pair.template)] = False
        where[len(rows) :] = False  # donors compute what the intact model computes, also if several parts are replaced
        place = torch.arange(width, device=self.lm.device).expand(len(where), -1)
        row = torch.arange(len(where), device=self.lm.device)[:, None].expand(-1, width)
        if donors:
            last = tokens.mask.sum(1).roll(-len(rows))[:, None] - 1
            new = Replacement(where, row.roll(-len(rows), 0), torch.minimum(place, last))
        elif self.by == "counterfactual":
            begin, end = (
                torch.tensor([f(pair) for pair in chosen] * 2, device=self.lm.device)[:, None]
                for f in (lambda pair: len(pair.prefix), _shorter)
            )
            new = Replacement((place >= begin) & (place < end), row.roll(len(chosen), 0), place)
        else:
            new = Replacement(where)
        return PairBatch(self.lm, chosen, tokens, self.over, new)


def _shorter(pair: FirstDifference) -> int:
    """Return the number of tokens of the shorter text of a pair."""
    return len(pair.prefix) + min(len(pair.toxic), len(pair.neutral))


def without_first(real: Bool[Tensor, "rows pos"]) -> Bool[Tensor, "rows pos"]:
    """Return a copy of a mask that leaves out the first position."""
    kept = real.clone()
    kept[:, 0] = False
    return kept
