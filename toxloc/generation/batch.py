"""Texts that a model continues side by side: each enters when there is room and leaves when it has ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from ..models.batching import pad
from ..models.loaded import LoadedModel
from .attention import one_query_at_a_time
from .cache import new_cache, select_rows, widened
from .sampling import Sampler

CHANGE_AT = 1 / 4  # of the batch ended: its rows leave, and others enter


@dataclass(frozen=True)
class Opening:
    """A prompt's token ids, and for every continuation of it to write its name and its seed."""

    ids: list[int]
    continuations: Sequence[tuple[Any, int]]


@dataclass
class _Row:
    name: Any
    noise: torch.Generator
    written: list[int] = field(default_factory=list)
    ended: bool = False


def decode(lm: LoadedModel, openings: Sequence[Opening], sampler: Sampler, max_new_tokens: int,
           size: int) -> Iterator[tuple[Any, list[int]]]:
    """Continue every opening, and yield the names of continuations with their tokens as they end.

    A prompt is read once for all its continuations; its logits are made only where a token is drawn. The token that
    ends a text is the last one yielded, if it came.

    Args:
        lm: the model; `lm.hf` writes.
        openings: in the order in which they enter.
        sampler: chooses tokens.
        max_new_tokens: of each continuation, at most.
        size: continuations at a time, at most.
    """
    ends, batch = _ends(lm), _Batch(lm)
    waiting = [Opening(one.ids, one.continuations[start : start + size]) for one in openings
               for start in range(0, len(one.continuations), size)][::-1]
    with one_query_at_a_time(lm):
        while waiting or batch.rows:
            room = size - len(batch.rows)
            if waiting and room >= CHANGE_AT * size:
                entering = []
                while waiting and len(waiting[-1].continuations) <= room:
                    entering.append(waiting.pop())
                    room -= len(entering[-1].continuations)
                if entering:
                    batch.enter(entering)
            drawn = sampler(batch.next_scores(), [row.noise for row in batch.rows], batch.ids, batch.mask)
            for row, token in zip(batch.rows, drawn.tolist(), strict=True):
                if not row.ended:
                    row.written.append(token)
                    row.ended = token in ends or len(row.written) == max_new_tokens
                    if row.ended:
                        yield row.name, row.written
            batch.append(drawn)
            if sum(row.ended for row in batch.rows) >= CHANGE_AT * len(batch.rows):
                batch.leave()


class _Batch:
    """Rows being continued.

    Attributes:
        rows: what each of them has written.
        ids: their tokens, [rows, pos], padded on the left.
        mask: 1 at real tokens.
    """

    def __init__(self, lm: LoadedModel):
        self.lm = lm
        self.rows: list[_Row] = []
        self.ids = self.mask = torch.empty(0, 0, dtype=torch.long, device=lm.device)
        self.cache = new_cache()  # of all but the last token

    def enter(self, openings: Sequence[Opening]) -> None:
        """Read openings and put their continuations beside those that are there."""
        lm = self.lm
        # Two columns at least, so that there is something to read before the last token, be it padding.
        batch = pad(lm, [one.ids for one in openings], list(range(len(openings))), "left", at_least=2)
        read, before = new_cache(), batch.mask[:, :-1]
        lm.hf.base_model(**_inputs(lm, batch.ids[:, :-1], before, read))
        for layer in read.layers:  # rows of nothing but padding give nan, which a weight of 0 does not undo
            padding = before[:, None, :, None].to(layer.keys.device) == 0
            layer.keys, layer.values = (x.masked_fill_(padding, 0) for x in (layer.keys, layer.values))
        counts = torch.tensor([len(one.continuations) for one in openings], device=lm.device)
        origin = torch.arange(len(openings), device=lm.device).repeat_interleave(counts)
        select_rows(read, origin)
        ids, mask = batch.ids[origin], batch.mask[origin]
        if self.rows:
            width = max(ids.shape[1], self.ids.shape[1])
            for mine, new in zip(self.cache.layers, read.layers, strict=True):
                mine.keys, mine.values = (
                    torch.cat([widened(one, 2, width - 1), widened(other, 2, width - 1)])
                    for one, other in ((mine.keys, new.keys), (mine.values, new.values)))
            self.ids = torch.cat([widened(self.ids, 1, width), widened(ids, 1, width)])
            self.mask = torch.cat([widened(self.mask, 1, width), widened(mask, 1, width)])
        else:
            self.ids, self.mask, self.cache = ids, mask, read
        self.rows += [_Row(name, torch.Generator(lm.device).manual_seed(seed)) for one in openings
                      for name, seed in one.continuations]

    def next_scores(self) -> Float[Tensor, "rows d_vocab"]:
        """Logits of the next token, in float32."""
        logits: Tensor = self.lm.hf(**_inputs(self.lm, self.ids[:, -1:], self.mask, self.cache)).logits
        return logits[:, -1].float().to(self.lm.device)

    def append(self, token: Int[Tensor, " rows"]) -> None:
        """Add a token to every row."""
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(token)[:, None]], 1)

    def leave(self) -> None:
        """Take out rows that have ended, and columns that then hold nothing but padding."""
        kept = [place for place, row in enumerate(self.rows) if not row.ended]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return
        places = torch.tensor(kept, device=self.lm.device)
        select_rows(self.cache, places)
        self.ids, self.mask = self.ids[places], self.mask[places]
        empty = int(self.mask.any(0).int().argmax())
        self.ids, self.mask = self.ids[:, empty:], self.mask[:, empty:]
        if empty:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, empty:], layer.values[:, :, empty:]


def _inputs(lm: LoadedModel, ids: Int[Tensor, "rows new"], mask: Int[Tensor, "rows pos"],
            cache: Cache) -> dict[str, Any]:
    """What a forward pass takes that reads `ids` after what the cache holds; positions are counted without padding."""
    taken = signature(lm.hf.forward).parameters
    name = "cache" if "cache" in taken else "past_key_values"  # as this version of transformers calls it
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": True, name: cache}
    if "position_ids" in taken:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return inputs


def _ends(lm: LoadedModel) -> set[int]:
    eos = lm.hf.generation_config.eos_token_id
    return set(eos if isinstance(eos, list) else [eos])
