"""The sampling loop: prompts join the batch when there is room, and finished texts leave it.

toxloc has its own loop because it is 3 to 4 times as fast as `generate` of transformers (benchmarks/generation.py).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from ..models.batching import pad
from ..models.loaded import LoadedModel
from .attention import fast_attention
from .cache import empty_cache, pad_left, select_rows
from .opening import Opening
from .sampling import Sampler
from .stateful import decode_stateful, is_stateful

# Finished rows leave when they are at least this fraction of all rows; prompts join when this fraction is free.
CHANGE_AT = 1 / 4


@dataclass
class _Row:
    """A continuation: its name, its random generator, and its tokens so far."""

    name: Any
    noise: torch.Generator
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


def decode(
    lm: LoadedModel,
    openings: Sequence[Opening],
    sampler: Sampler,
    max_new_tokens: int,
    size: int,
    further_ends: Collection[int] = (),
) -> Iterator[tuple[Any, list[int]]]:
    """Continue every opening; yield the name and the tokens of each continuation as soon as it ends.

    The prefill of a prompt is shared by all its continuations, and logits are computed only at positions where a token
    is drawn. If an end-of-text token is drawn, it is the last token of the continuation.

    Args:
        lm: the model; `lm.hf` generates.
        openings: the prompts, in the order in which they join the batch.
        sampler: chooses the next tokens.
        max_new_tokens: largest number of tokens in a continuation.
        size: largest number of continuations in the batch.
        further_ends: tokens that end a continuation besides the model's own.
    """
    end_tokens = _end_tokens(lm) | set(further_ends)
    if is_stateful(lm):
        yield from decode_stateful(lm, openings, sampler, max_new_tokens, size, end_tokens)
        return
    batch = _Batch(lm)
    waiting = [
        Opening(opening.ids, opening.continuations[start : start + size])
        for opening in openings
        for start in range(0, len(opening.continuations), size)
    ][::-1]
    with fast_attention(lm):
        while waiting or batch.rows:
            room = size - len(batch.rows)
            if waiting and room >= CHANGE_AT * size:
                joining = []
                while waiting and len(waiting[-1].continuations) <= room:
                    joining.append(waiting.pop())
                    room -= len(joining[-1].continuations)
                if joining:
                    batch.add(joining)
            drawn = sampler(batch.next_logits(), [row.noise for row in batch.rows], batch.ids, batch.mask)
            for row, token in zip(batch.rows, drawn.tolist(), strict=True):
                if not row.ended:
                    row.tokens.append(token)
                    row.ended = token in end_tokens or len(row.tokens) == max_new_tokens
                    if row.ended:
                        yield row.name, row.tokens
            batch.append(drawn)
            if sum(row.ended for row in batch.rows) >= CHANGE_AT * len(batch.rows):
                batch.remove_ended()


class _Batch:
    """The continuations in progress.

    Attributes:
        rows: the continuations.
        ids: token ids of each row, prompt and continuation, [rows, pos], padded on the left.
        mask: 1 at real tokens, 0 at padding.
        cache: keys and values of all tokens except the last.
    """

    def __init__(self, lm: LoadedModel):
        self.lm = lm
        self.rows: list[_Row] = []
        self.ids = self.mask = torch.empty(0, 0, dtype=torch.long, device=lm.device)
        self.cache = empty_cache()

    def add(self, openings: Sequence[Opening]) -> None:
        """Compute the keys and values of openings, and add their continuations to the batch."""
        lm = self.lm
        # Two columns at least, so that there is a position to read before the last token, even if it is padding.
        batch = pad(lm, [opening.ids for opening in openings], list(range(len(openings))), "left", at_least=2)
        cache, before = empty_cache(), batch.mask[:, :-1]
        lm.decoder(**_inputs(lm, batch.ids[:, :-1], before, cache))
        for layer in cache.layers:  # a row with only padding gives nan, which masking does not remove: 0 · nan is nan
            padding = before[:, None, :, None].to(layer.keys.device) == 0
            layer.keys, layer.values = (x.masked_fill_(padding, 0) for x in (layer.keys, layer.values))
        counts = torch.tensor([len(opening.continuations) for opening in openings], device=lm.device)
        origin = torch.arange(len(openings), device=lm.device).repeat_interleave(counts)
        select_rows(cache, origin)
        ids, mask = batch.ids[origin], batch.mask[origin]
        if self.rows:
            width = max(ids.shape[1], self.ids.shape[1])
            for held, new in zip(self.cache.layers, cache.layers, strict=True):
                held.keys, held.values = (
                    torch.cat([pad_left(old, 2, width - 1), pad_left(added, 2, width - 1)])
                    for old, added in ((held.keys, new.keys), (held.values, new.values))
                )
            self.ids = torch.cat([pad_left(self.ids, 1, width), pad_left(ids, 1, width)])
            self.mask = torch.cat([pad_left(self.mask, 1, width), pad_left(mask, 1, width)])
        else:
            self.ids, self.mask, self.cache = ids, mask, cache
        self.rows += [
            _Row(name, torch.Generator(lm.device).manual_seed(seed))
            for opening in openings
            for name, seed in opening.continuations
        ]

    def next_logits(self) -> Float[Tensor, "rows d_vocab"]:
        """Return the logits of the next token, in float32."""
        logits: Tensor = self.lm.hf(**_inputs(self.lm, self.ids[:, -1:], self.mask, self.cache)).logits
        return logits[:, -1].float().to(self.lm.device)

    def append(self, tokens: Int[Tensor, " rows"]) -> None:
        """Append a token to every row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)[:, None]], 1)

    def remove_ended(self) -> None:
        """Remove rows that have ended, and then the columns that hold only padding."""
        kept = [i for i, row in enumerate(self.rows) if not row.ended]
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            return
        indices = torch.tensor(kept, device=self.lm.device)
        select_rows(self.cache, indices)
        self.ids, self.mask = self.ids[indices], self.mask[indices]
        empty = int(self.mask.any(0).int().argmax())
        self.ids, self.mask = self.ids[:, empty:], self.mask[:, empty:]
        if empty:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, empty:], layer.values[:, :, empty:]


def _inputs(
    lm: LoadedModel, ids: Int[Tensor, "rows new"], mask: Int[Tensor, "rows pos"], cache: Cache
) -> dict[str, Any]:
    """Return the inputs of a forward pass that reads `ids` after the cached tokens. Positions do not count padding."""
    parameters = signature(lm.hf.forward).parameters
    cache_name = "cache" if "cache" in parameters else "past_key_values"  # depends on the version of transformers
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": True, cache_name: cache}
    if "position_ids" in parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return inputs


def _end_tokens(lm: LoadedModel) -> set[int]:
    eos = lm.hf.generation_config.eos_token_id
    return set(eos if isinstance(eos, list) else [eos])
