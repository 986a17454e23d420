"""Batched sampling whose result does not depend on the batch."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, GenerationMixin, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from .batching import Batch, encode, filler, pad
from .errors import ToxlocError
from .model import LoadedModel
from .progress import track

FEW = 1024  # tokens among which the nucleus is looked for first
# What this version of transformers calls the keys and values that generate() takes.
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
ROWS_PER_BATCH = {"cpu": 128, "cuda": 1024}


def draw(scores: Float[Tensor, "rows d_vocab"], uniform: Float[Tensor, "rows d_vocab"],
         top_p: float = 1.0) -> Int[Tensor, " rows"]:
    """Draw a token per row from softmax(scores), cut to the smallest set of tokens with probability `top_p`.

    argmax(scores + Gumbel noise) is distributed as softmax(scores) (Gumbel 1954), the noise being -log(-log(uniform)).
    The `FEW` most likely tokens almost always hold the nucleus; rows where they do not are sorted in full.

    Example:
        >>> draw(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([1])
    """
    few, token = scores.topk(min(FEW, scores.shape[1]))
    shares = (few - scores.logsumexp(-1, keepdim=True)).exp()
    ahead = shares.cumsum(-1) - shares  # probability of the tokens more likely than this one
    noisy = (few + _gumbel(uniform.gather(1, token))).masked_fill(ahead >= top_p, -torch.inf)
    drawn = token.gather(1, noisy.argmax(1, keepdim=True))[:, 0]
    wider = ahead[:, -1] < top_p
    if few.shape[1] < scores.shape[1] and bool(wider.any()):
        kept = scores[wider] if top_p == 1 else TopPLogitsWarper(top_p)(token[wider], scores[wider])
        drawn[wider] = (kept + _gumbel(uniform[wider])).argmax(1)
    return drawn


def _gumbel(uniform: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()


class SeededRows(LogitsProcessor):  # type: ignore[misc]
    """Sampling as a step of greedy decoding: give the token that `draw` chose a 1 and every other one a 0.

    With a generator per row, a completion depends on its prompt, its number and the seed, and not on what else is in
    the batch; and two models are compared with the same noise.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Int[Tensor, "rows pos"],
                 scores: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows d_vocab"]:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        drawn = draw(scores.float() / self.temperature, uniform.to(scores.device), self.top_p)
        return torch.zeros_like(scores).scatter_(1, drawn[:, None], 1.0)


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
    for group in track(_groups([len(row) for row in rows], samples, size), "sampling"):
        batch = pad(lm, [rows[i] for i, _ in group], [i for i, _ in group], "left")
        each = torch.tensor([len(numbers) for _, numbers in group], device=lm.device)
        places = [(i, k) for i, numbers in group for k in numbers]
        noise = [] if temperature == 0 else [SeededRows([seeds[i][k] for i, k in places], temperature, top_p)]
        written = lm.hf.generate(
            input_ids=batch.ids.repeat_interleave(each, 0), attention_mask=batch.mask.repeat_interleave(each, 0),
            max_new_tokens=max_new_tokens, logits_processor=LogitsProcessorList(noise), **_plain(lm),
            **_read(lm, batch, each),
        )
        for (i, k), ids in zip(places, written[:, batch.ids.shape[1] :].tolist(), strict=True):
            completions[i][k] = lm.tokenizer.decode(_until_end(ids, lm), skip_special_tokens=True)
    return completions


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


def _read(lm: LoadedModel, batch: Batch, each: Int[Tensor, " prompts"]) -> dict[str, Cache]:
    """Keys and values of all but the last token of every prompt, computed once and repeated for each completion."""
    if batch.ids.shape[1] == 1:
        return {}
    read = lm.hf.generate(input_ids=batch.ids[:, :-1], attention_mask=batch.mask[:, :-1], max_new_tokens=1,
                          return_dict_in_generate=True, **_plain(lm))
    cache: Cache = read[CACHE]
    cache.batch_select_indices(torch.arange(len(each), device=each.device).repeat_interleave(each))
    return {CACHE: cache}


def _plain(lm: LoadedModel) -> dict[str, Any]:
    """Greedy decoding and nothing else, whatever beams or penalties a folder's generation_config.json asks for."""
    return {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None,
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True, "pad_token_id": filler(lm)}


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[list[int]]:
    """One seed per completion, from the prompt's text, how often it occurred before, the sample and the seed."""
    met: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digests = (hashlib.sha256(f"{seed}/{met[prompt]}/{k}/{prompt}".encode()).digest() for k in range(samples))
        seeds.append([int.from_bytes(digest[:7], "big") for digest in digests])
        met[prompt] += 1
    return seeds


def _until_end(ids: list[int], lm: LoadedModel) -> list[int]:
    eos = lm.hf.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
