"""Replacements: the parts of a model that are replaced, the texts that are read, and where the new values come from.

New values that another text provides are computed in the same forward pass, as further rows of the batch, so nothing is
stored between passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..errors import ToxlocError
from ..localization.difference_statistics import log_difference
from ..localization.first_difference import FirstDifference
from ..localization.moments import Moments
from ..models.banks import Routed
from ..models.batching import Batch, batches, groups_of_rows, pad
from ..models.likelihood import token_nll
from ..models.loaded import LoadedModel
from ..models.site_view import SiteView
from ..models.sites import Site, Unit
from .knockout import Parts, split_parts

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


class ReplacedPart:
    """One part of a model, and the hook that replaces it.

    Args:
        lm: the model.
        part: a site, of which the term that it adds to the residual stream is replaced; or a unit, of which the keys
            are replaced.
    """

    def __init__(self, lm: LoadedModel, part: Site | Unit):
        self.lm, self.part = lm, part
        self.view: SiteView = lm.at(part if isinstance(part, Site) else part[0])
        self.columns = slice(None) if isinstance(part, Site) else self.view.rows(part[1])
        self.hook = self.view.write_hook if isinstance(part, Site) else self.view.keys_hook
        width = lm.d_model if isinstance(part, Site) else self.view.width
        self.constant: Float[Tensor, " d"] = torch.zeros(width)

    @contextmanager
    def placed(self, new: Replacement) -> Iterator[None]:
        """Replace the part for the duration of the block."""
        with ExitStack() as stack:
            if self.view.bank is None:
                stack.enter_context(self.lm.hooks([(self.hook, lambda x: self._replaced(x, new))]))
            else:
                self._replace_expert(new, stack)
            yield

    def _replaced(self, x: Tensor, new: Replacement) -> Tensor:
        flat = x.reshape(*new.where.shape, -1)
        own = flat[..., self.columns]
        where = self._where(new).to(x.device)
        if new.row is None or new.position is None:
            values = self.constant.to(own).expand_as(own)
        else:
            values = own[new.row.to(x.device), new.position.to(x.device)]
        out = flat.clone()
        out[..., self.columns] = torch.where(where, values, own)
        return out.view_as(x)

    def _where(self, new: Replacement) -> Bool[Tensor, "rows pos _d"]:
        return new.where[..., None]

    def _replace_expert(self, new: Replacement, stack: ExitStack) -> None:
        bank, expert, seen = self.view.bank, self.view.site.expert, list[Routed]()
        assert bank is not None and expert is not None

        def watch(routed: Routed) -> None:
            if routed.expert == expert:
                seen[:] = [routed]  # the tokens of the output that is computed next

        def replaced(m: Tensor) -> Tensor:
            (routed,) = seen
            where = new.where.to(m.device).flatten()[routed.tokens, None]
            # The router weight multiplies the output later, except in Llama 4, where it multiplies the input.
            scale = 1.0 if bank.layout == "batched" else routed.router[:, None].to(m).clamp_min(1e-9)
            return torch.where(where, self.constant.to(m) / scale, m)

        bank.watch(watch, stack)
        bank.change_output(expert, replaced, stack)

    @contextmanager
    def watched(self, moments: Moments, kept: list[Bool[Tensor, "batch pos"]]) -> Iterator[None]:
        """Add what the part computes at the positions that `kept` holds to `moments`, within the block."""

        def add(rows: Tensor) -> None:
            moments.update(rows, torch.ones(len(rows), device=rows.device), len(rows))

        def on_values(x: Tensor) -> None:
            flat = x.detach().reshape(*kept[0].shape, -1)
            add(flat[kept[0].to(x.device)][:, self.columns])

        def on_routed(routed: Routed) -> None:
            if routed.expert != self.view.site.expert:
                return
            chosen = kept[0].to(routed.keys.device).flatten()[routed.tokens]
            share = routed.keys[chosen].float() @ self.view.W.float()
            if self.view.bias is not None:
                share = share + routed.router[chosen, None].float() * self.view.bias.float()
            add(share)

        with ExitStack() as stack:
            if self.view.bank is None:
                stack.enter_context(self.lm.hooks([(self.hook, on_values)]))
            else:
                self.view.bank.watch(on_routed, stack)
            yield


class ReplacedUnits(ReplacedPart):
    """The units of a site, any number of which are replaced at once by one hook.

    The means of all keys are read once; `choose` then says which units are replaced.

    Args:
        lm: the model.
        site: the site, which is not an expert that a router chooses.
    """

    def __init__(self, lm: LoadedModel, site: Site):
        super().__init__(lm, site)
        self.hook = self.view.keys_hook
        self.constant = torch.zeros(self.view.d_in)
        self.chosen = torch.ones(self.view.d_in, dtype=torch.bool)

    def choose(self, units: Bool[np.ndarray, " n_units"]) -> None:
        """Set the units to replace."""
        self.chosen = self.view.per_key(torch.from_numpy(units))

    def _where(self, new: Replacement) -> Bool[Tensor, "rows pos _d"]:
        return super()._where(new) & self.chosen.to(new.where.device)


def replaced_parts(lm: LoadedModel, parts: Parts, by: By) -> list[ReplacedPart]:
    """Return the parts to replace, each once, in the order given.

    Raises:
        ToxlocError: there are no parts, or both sites and units; the model does not have a part; the part is a neuron
            of a routed expert; or it is a routed expert and `by` takes values from another text.
    """
    sites, units = split_parts(parts)
    chosen: list[Site | Unit] = list(dict.fromkeys([*sites, *units]))
    for part in chosen:
        site = part if isinstance(part, Site) else part[0]
        if not isinstance(part, Site):
            lm.check_unit(*part)
        if lm.at(site).bank is not None and not isinstance(part, Site):
            raise ToxlocError(f"A neuron of {site.title} cannot be patched; patch the expert as a whole, {site!r}.")
        if lm.at(site).bank is not None and by not in CONSTANT:
            raise ToxlocError(
                f"{site.title} is an expert that a router chooses, and another text's tokens go to other experts; "
                f"patch it with by='mean' or by='zero' instead of by={by!r}."
            )
    return [ReplacedPart(lm, part) for part in chosen]


@torch.inference_mode()
def read_means(
    lm: LoadedModel, parts: Sequence[ReplacedPart], texts: Sequence[str], *, skip_first: bool, max_length: int
) -> None:
    """Set the constant of each part to the mean of what it computes over the tokens of texts, in one pass."""
    kept: list[Tensor] = [torch.ones(0, 0, dtype=torch.bool)]
    moments = [Moments(len(part.constant)) for part in parts]
    with ExitStack() as stack:
        for part, own in zip(parts, moments, strict=True):
            stack.enter_context(part.watched(own, kept))
        for batch in batches(lm, texts, max_length=max_length, describe="means over neutral texts"):
            kept[0] = _without_first(batch.real) if skip_first else batch.real
            lm.forward_hidden(batch.ids, batch.mask)
    for part, own in zip(parts, moments, strict=True):
        part.constant = own.mean.float()


@dataclass(frozen=True)
class PairBatch:
    """Some pairs as one batch of tokens.

    Its rows are the prefixes, or, if D is that over the endings, the toxic texts and then the neutral texts. With
    by="resample", as many rows of other pairs follow.

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

    def difference(self) -> Float64[np.ndarray, " n"]:
        """Return D of every pair in the model with its current hooks."""
        lm, n = self.lm, len(self.pairs)
        if self.over == "first":
            toxic, neutral = (
                torch.tensor([getattr(pair, side)[0] for pair in self.pairs], device=lm.device)
                for side in ("toxic", "neutral")
            )
            return log_difference(lm, self.tokens, toxic, neutral).cpu().double().numpy()
        ids, real = self.tokens.ids[: 2 * n], self.tokens.real[: 2 * n]
        begins = torch.tensor([len(pair.prefix) for pair in self.pairs] * 2, device=lm.device)
        predicted = (torch.arange(1, ids.shape[1], device=lm.device) >= begins[:, None]) & real[:, 1:]
        hidden = lm.forward_hidden(self.tokens.ids, self.tokens.mask)[: 2 * n, :-1][predicted]
        losses = torch.zeros(predicted.shape, device=lm.device)
        losses[predicted] = token_nll(lm, hidden, ids[:, 1:][predicted])
        mean = (losses.cpu().double().sum(1) / predicted.sum(1).cpu()).numpy()
        difference: np.ndarray = mean[n:] - mean[:n]
        return difference


class PairReader:
    """Makes the batches of pairs for one way of replacing.

    Args:
        lm: the model.
        pairs: the pairs, at least two.
        by: what replaces the parts.
        over: what D compares.
        seed: seed for the other pairs of by="resample".
        skip_first: leave the first position unchanged.
    """

    def __init__(
        self, lm: LoadedModel, pairs: Sequence[FirstDifference], by: By, over: Over, *, seed: int, skip_first: bool
    ):
        self.lm, self.pairs, self.by, self.over, self.skip_first = lm, pairs, by, over, skip_first
        shift = np.random.default_rng([seed, 3]).integers(1, len(pairs), size=len(pairs))
        self.other = (np.arange(len(pairs)) + shift) % len(pairs)

    def rows(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the rows of tokens of some pairs."""
        chosen = [self.pairs[i] for i in index]
        if self.over == "first":
            return [pair.prefix for pair in chosen]
        return [pair.prefix + pair.toxic for pair in chosen] + [pair.prefix + pair.neutral for pair in chosen]

    def groups(self) -> list[list[int]]:
        """Return the indices of the pairs of each batch."""
        copies = 2 if self.by == "resample" else 1
        per_pair = [self.rows([i]) for i in range(len(self.pairs))]
        return groups_of_rows(self.lm, [copies * len(rows) * max(map(len, rows)) for rows in per_pair])

    def batch(self, index: list[int]) -> PairBatch:
        """Return some pairs as one batch."""
        chosen, rows = [self.pairs[i] for i in index], self.rows(index)
        n_rows, width = len(rows), max(map(len, rows))
        if self.by == "resample":  # tokens after the longest row would not be used
            rows += [row[:width] for row in self.rows([int(self.other[i]) for i in index])]
        tokens = pad(self.lm, rows, index, "right")
        where = _without_first(tokens.real) if self.skip_first else tokens.real.clone()
        where[n_rows:] = False  # other pairs provide what the intact model computes, also if several parts are replaced
        place = torch.arange(width, device=self.lm.device).expand(len(rows), -1)
        row = torch.arange(len(rows), device=self.lm.device)[:, None].expand(-1, width)
        if self.by == "resample":
            last = tokens.mask.sum(1).roll(-n_rows)[:, None] - 1
            new = Replacement(where, row.roll(-n_rows, 0), torch.minimum(place, last))
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


def _without_first(real: Bool[Tensor, "rows pos"]) -> Bool[Tensor, "rows pos"]:
    kept = real.clone()
    kept[:, 0] = False
    return kept
