"""The sampling loop for models whose state is more than keys and values: linear attention, state spaces, indexers.

The state of such a model cannot be padded or cropped, so only continuations of equally long prompts share a batch, and
a batch ends when all its continuations have ended. A model without a cache reads the whole text again for each token.
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..models.hooked_tree import SAME, SAME_IN_16_BITS, tokens
from ..models.loaded import LoadedModel
from .opening import Opening
from .sampling import Sampler


def is_stateful(lm: LoadedModel) -> bool:
    """Whether a model needs this loop: its cache has other layers than keys and values, or it has no cache."""
    if getattr(lm.hf, "_is_stateful", False) or _cache_name(lm) is None:
        return True
    kinds = {type(layer) for layer in DynamicCache(config=lm.hf.config).layers}
    return not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _cache_name(lm: LoadedModel) -> str | None:
    """Return the name of the argument for the cache, which depends on the version of transformers; None without one."""
    parameters = signature(lm.hf.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def decode_stateful(
    lm: LoadedModel, openings: Sequence[Opening], sampler: Sampler, max_new_tokens: int, size: int, end_tokens: set[int]
) -> Iterator[tuple[Any, list[int]]]:
    """Continue every opening; see `batch.decode`."""
    cached = _cache_is_exact(lm)
    rows = [
        (opening.ids, name, seed)
        for opening in sorted(openings, key=lambda opening: len(opening.ids))
        for name, seed in opening.continuations
    ]
    for _, group in groupby(rows, key=lambda row: len(row[0])):
        equal = list(group)
        for start in range(0, len(equal), size):
            state = _State(lm, cached)
            yield from _continued(lm, equal[start : start + size], state, sampler, max_new_tokens, end_tokens)


def _continued(
    lm: LoadedModel,
    rows: Sequence[tuple[list[int], Any, int]],
    state: "_State",
    sampler: Sampler,
    max_new_tokens: int,
    end_tokens: set[int],
) -> Iterator[tuple[Any, list[int]]]:
    """Continue equally long prompts, and yield each continuation when it ends."""
    noise = [torch.Generator(lm.device).manual_seed(seed) for _, _, seed in rows]
    ids = torch.tensor([prompt for prompt, _, _ in rows], device=lm.device)
    tokens: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    while not all(ended):
        drawn = sampler(state.next_logits(ids), noise, ids, torch.ones_like(ids))
        for i, token in enumerate(drawn.tolist()):
            if not ended[i]:
                tokens[i].append(token)
                ended[i] = token in end_tokens or len(tokens[i]) == max_new_tokens
                if ended[i]:
                    yield rows[i][1], tokens[i]
        ids = torch.cat([ids, drawn[:, None]], 1)


class _State:
    """The cache of a batch; without a cache, every token is computed from the whole text."""

    def __init__(self, lm: LoadedModel, cached: bool):
        self.lm, self.read, self.inputs = lm, 0, dict[str, Any]()
        if cached and (name := _cache_name(lm)) is not None:
            self.inputs = {name: DynamicCache(config=lm.hf.config)}

    def next_logits(self, ids: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows d_vocab"]:
        """Return the logits of the next token, in float32.

        No attention mask is passed, because no row has padding, and Mamba applies a mask to its state.
        """
        logits: Tensor = self.lm.hf(input_ids=ids[:, self.read :], use_cache=bool(self.inputs), **self.inputs).logits
        self.read = ids.shape[1] if self.inputs else 0
        return logits[:, -1].float().to(self.lm.device)


def _cache_is_exact(lm: LoadedModel) -> bool:
    """Whether the model has a cache, and computes the same logits with it as without it on a few tokens.

    In transformers 5.24, Bamba's cached computation differs.
    """
    if _cache_name(lm) is None:
        return False
    ids, _ = tokens(lm.hf)
    state, exact = _State(lm, cached=True), True
    for n in range(5, ids.shape[1] + 1):
        expected = _State(lm, cached=False).next_logits(ids[:, :n])
        difference = (state.next_logits(ids[:, :n]) - expected).abs().max()
        exact &= float(difference / expected.abs().max()) < SAME.get(lm.dtype, SAME_IN_16_BITS)
    return exact
