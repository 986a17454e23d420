"""Batched sampling whose result does not depend on the batch."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from .batching import Batch, encode, pad
from .errors import ToxlocError
from .model import LoadedModel
from .progress import track

FEW = 512  # tokens among which the nucleus is looked for first
ROWS_PER_BATCH = {"cpu": 128, "cuda": 1024}
ENDED = 1 / 8  # of the rows in a batch: then they are taken out of it


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


class Sampler:
    """Chooses the next token of each row, with a generator per row.

    So a completion depends on its prompt, its number and the seed, and not on what else is in the batch; and two models
    are compared with the same noise.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, scores: Float[Tensor, "rows d_vocab"]) -> Int[Tensor, " rows"]:
        """Choose; a temperature of 0 takes the most likely token."""
        if self.temperature == 0:
            return scores.argmax(1)
        if self.temperature != 1:
            scores = scores / self.temperature
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        return draw(scores, uniform.to(scores.device), self.top_p)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self.generators = [self.generators[row] for row in rows]


@torch.inference_mode()
def generate(lm: LoadedModel, prompts: Sequence[str], *, samples: int = 1, max_new_tokens: int = 20,
             top_p: float = 0.9, temperature: float = 1.0, seed: int = 0,
             batch_size: int | None = None) -> list[list[str]]:
    """Sample completions of every prompt with the model as it is now.

    Args:
        lm: the model; `lm.hf` generates, so hooks placed on `lm.hooked` alone have no effect here.
        prompts: none of them empty.
        samples: completions per prompt.
        max_new_tokens: length of a completion; it ends earlier at the end-of-text token.
        top_p: nucleus sampling: the smallest set of tokens with this probability. 1 for plain sampling.
        temperature: 0 for greedy decoding.
        seed: the same seed, machine and version give the same completions, whatever the batch size.
        batch_size: rows at a time.

    Returns:
        For every prompt the list of its completions, without the prompt.

    Raises:
        ToxlocError: an empty prompt, or a number out of range.

    Example:
        >>> from toxloc import load_model
        >>> generate(load_model(), ["The weather today is"], samples=2)    # doctest: +SKIP
        [[' a bit cold, but ...', ' not so bad ...']]
    """
    for name, value, good in (("samples", samples, samples >= 1), ("max_new_tokens", max_new_tokens,
                              1 <= max_new_tokens < lm.context), ("top_p", top_p, 0 < top_p <= 1),
                              ("temperature", temperature, temperature >= 0)):
        if not good:
            raise ToxlocError(f"{name}={value} is out of range for {lm.name} (context of {lm.context} tokens).")
    rows = encode(lm, prompts, lm.context - max_new_tokens)
    seeds = _seeds(prompts, samples, seed)
    size = batch_size or ROWS_PER_BATCH["cpu" if lm.device.type == "cpu" else "cuda"]
    completions = [[""] * samples for _ in prompts]
    with _one_query_at_a_time(lm):
        for group in track(_groups([len(row) for row in rows], samples, size), "sampling"):
            batch = pad(lm, [rows[i] for i, _ in group], [i for i, _ in group], "left")
            places = [(i, k) for i, numbers in group for k in numbers]
            sampler = Sampler([seeds[i][k] for i, k in places], temperature, top_p)
            written = _decode(lm, batch, [len(numbers) for _, numbers in group], sampler, max_new_tokens)
            for (i, k), ids in zip(places, written, strict=True):
                completions[i][k] = lm.tokenizer.decode(ids, skip_special_tokens=True)
    return completions


def _decode(lm: LoadedModel, batch: Batch, each: Sequence[int], sampler: Sampler,
            max_new_tokens: int) -> list[list[int]]:
    """Continue every prompt of a left-padded batch `each` times; the end-of-text token is not returned.

    Keys and values of all but a prompt's last token are computed once, and no logits with them.
    """
    cache, origin = DynamicCache(config=lm.hf.config), torch.arange(len(each)).repeat_interleave(torch.tensor(each))
    origin = origin.to(lm.device)
    if batch.ids.shape[1] > 1:
        mask = batch.mask[:, :-1]
        lm.hf.base_model(**_inputs(lm, batch.ids[:, :-1], mask, cache))
        cache.batch_select_indices(origin)
    token, mask = batch.ids[origin, -1:], batch.mask[origin]
    written: list[list[int]] = [[] for _ in origin]
    rows, ends = list(range(len(origin))), _ends(lm)
    alive = set(rows)
    for _ in range(max_new_tokens):
        drawn = sampler(lm.hf(**_inputs(lm, token, mask, cache)).logits[:, -1].float())
        for row, one in zip(rows, drawn.tolist(), strict=True):
            if one in ends:
                alive.discard(row)
            elif row in alive:
                written[row].append(one)
        if not alive:
            break
        token, mask = drawn[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if len(alive) <= (1 - ENDED) * len(rows):
            kept = [place for place, row in enumerate(rows) if row in alive]
            place = torch.tensor(kept, device=lm.device)
            token, mask, rows = token[place], mask[place], [rows[one] for one in kept]
            cache.batch_select_indices(place)
            sampler.keep(kept)
    return written


def _inputs(lm: LoadedModel, ids: Int[Tensor, "rows new"], mask: Int[Tensor, "rows pos"],
            cache: DynamicCache) -> dict[str, Any]:
    """What a forward pass takes that reads `ids` after what the cache holds; positions are counted without padding."""
    taken = signature(lm.hf.forward).parameters
    name = "cache" if "cache" in taken else "past_key_values"  # as this version of transformers calls it
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": True, name: cache}
    if "position_ids" in taken:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1]:]
    return inputs


@contextmanager
def _one_query_at_a_time(lm: LoadedModel) -> Iterator[None]:
    """On a CPU, plain attention: torch's fused kernel is many times slower there for a single query."""
    before = lm.hf.config._attn_implementation
    if lm.device.type == "cpu" and before == "sdpa":
        lm.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        if lm.hf.config._attn_implementation != before:
            lm.hf.set_attn_implementation(before)


Group = list[tuple[int, range]]  # prompts, and the numbers of the completions of each that are sampled


def _groups(lengths: Sequence[int], samples: int, size: int) -> list[Group]:
    """Divide prompts, shortest first, so that no group has more than `size` completions.

    Prompts of one token have groups of their own: of them there is nothing to read ahead.
    """
    groups: list[Group] = []
    room, short = 0, False
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        for start in range(0, samples, size):
            numbers = range(start, min(start + size, samples))
            if len(numbers) > room or short != (lengths[i] == 1):
                groups.append([])
                room, short = size, lengths[i] == 1
            groups[-1].append((i, numbers))
            room -= len(numbers)
    return groups


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[list[int]]:
    """One seed per completion, from the prompt's text, how often it occurred before, the sample and the seed."""
    met: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digests = (hashlib.sha256(f"{seed}/{met[prompt]}/{k}/{prompt}".encode()).digest() for k in range(samples))
        seeds.append([int.from_bytes(digest[:7], "big") for digest in digests])
        met[prompt] += 1
    return seeds


def _ends(lm: LoadedModel) -> set[int]:
    eos = lm.hf.generation_config.eos_token_id
    return set(eos if isinstance(eos, list) else [eos])
