"""Batched sampling whose result does not depend on the batch."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from .batching import encode, filler, pad
from .errors import ToxlocError
from .model import LoadedModel
from .progress import track

FEW = 1024  # tokens among which the nucleus is looked for first
ROWS_PER_BATCH = {"cpu": 128, "cuda": 1024}


class Nucleus(LogitsProcessor):  # type: ignore[misc]
    """Keep the smallest set of tokens with probability `top_p`: what TopPLogitsWarper does, without sorting them all.

    The most likely `FEW` tokens almost always hold the nucleus; where they do not, that class takes over.
    """

    def __init__(self, top_p: float):
        self.top_p, self.exact = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Int[Tensor, "rows pos"],
                 scores: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows d_vocab"]:
        scores = scores.float()
        few = scores.topk(min(FEW, scores.shape[1])).values
        shares = (few - scores.logsumexp(-1, keepdim=True)).exp()
        ahead = shares.cumsum(-1) - shares  # probability of the tokens more likely than this one
        last = few.gather(1, (ahead < self.top_p).sum(-1, keepdim=True) - 1)
        kept = scores.masked_fill(scores < last, -torch.inf)
        wider = ahead[:, -1] < self.top_p
        if few.shape[1] < scores.shape[1] and bool(wider.any()):
            kept[wider] = self.exact(input_ids[wider], scores[wider])
        return kept


class SeededRows(LogitsProcessor):  # type: ignore[misc]
    """Sample by adding Gumbel noise of each row's own generator, so that the largest logit is a fair draw.

    argmax(logits + Gumbel noise) is distributed as softmax(logits) (Gumbel 1954). With a generator per row, a
    completion depends on its prompt, its number and the seed, and not on what else is in the batch; and two
    models are compared with the same noise.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Int[Tensor, "rows pos"],
                 scores: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows d_vocab"]:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        return scores.float() - (-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log().to(scores.device)


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
    order = sorted(((i, k) for i in range(len(rows)) for k in range(samples)), key=lambda ik: len(rows[ik[0]]))
    size = batch_size or ROWS_PER_BATCH["cpu" if lm.device.type == "cpu" else "cuda"]
    completions = [[""] * samples for _ in prompts]
    for start in track(range(0, len(order), size), "sampling"):
        part = order[start : start + size]
        batch = pad(lm, [rows[i] for i, _ in part], [i for i, _ in part], "left")
        noise = [] if temperature == 0 else _samplers(temperature, top_p, [seeds[i][k] for i, k in part])
        written = lm.hf.generate(
            input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=max_new_tokens, do_sample=False,
            logits_processor=LogitsProcessorList(noise), pad_token_id=filler(lm), use_cache=True, **_PLAIN,
        )
        for (i, k), ids in zip(part, written[:, batch.ids.shape[1] :].tolist(), strict=True):
            completions[i][k] = lm.tokenizer.decode(_until_end(ids, lm), skip_special_tokens=True)
    return completions


# A folder's generation_config.json may ask for beams, penalties or its own top-p; none of it belongs in a measurement.
_PLAIN: dict[str, Any] = {"num_beams": 1, "temperature": None, "top_p": None, "top_k": None,
                          "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def _samplers(temperature: float, top_p: float, seeds: Sequence[int]) -> list[Any]:
    steps: list[Any] = [] if temperature == 1 else [TemperatureLogitsWarper(temperature)]
    if top_p < 1:
        steps.append(Nucleus(top_p))
    return [*steps, SeededRows(seeds)]


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
