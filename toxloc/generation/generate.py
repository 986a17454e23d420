"""Batched sampling whose result does not depend on the batch."""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from ..errors import ToxlocError
from ..models.batching import encode
from ..models.loaded import LoadedModel
from ..support.progress import track
from ..version import __version__
from .batch import Opening, decode
from .decoding import Decoding
from .journal import Journal
from .sampling import Sampler

ROWS_PER_BATCH = {"cpu": 128, "cuda": 1024}


@dataclass(frozen=True)
class Completion:
    """One completion, without its prompt.

    Attributes:
        prompt: place of its prompt.
        sample: its number among the prompt's.
        text: what was written.
        n_tokens: tokens drawn for it, with the one that ended it.
    """

    prompt: int
    sample: int
    text: str
    n_tokens: int


def generate(lm: LoadedModel, prompts: Sequence[str], *, samples: int = 1, max_new_tokens: int = 20,
             top_p: float = 0.9, temperature: float = 1.0, repetition_penalty: float = 1.0, seed: int = 0,
             batch_size: int | None = None, journal: str | PathLike[str] | None = None) -> list[list[str]]:
    """Sample completions of every prompt with the model as it is now.

    Args:
        lm: the model; `lm.hf` generates, so hooks placed on `lm.hooked` alone have no effect here.
        prompts: none of them empty.
        samples: completions per prompt.
        max_new_tokens: length of a completion; it ends earlier at the end-of-text token.
        top_p: nucleus sampling: the smallest set of tokens with this probability. 1 for plain sampling.
        temperature: 0 for greedy decoding.
        repetition_penalty: over 1 makes tokens less likely that prompt or completion hold already.
        seed: the same seed, machine and version give the same completions, whatever the batch size.
        batch_size: completions at a time.
        journal: a file that every completion is written to as it comes. If it is there already, from the same model and
            settings, only what is missing is sampled: a run that was killed goes on.

    Returns:
        For every prompt the list of its completions, without the prompt.

    Raises:
        ToxlocError: an empty prompt, a number out of range, or a journal of something else.

    Example:
        >>> from toxloc import load_model
        >>> generate(load_model(), ["The weather today is"], samples=2)    # doctest: +SKIP
        [[' a bit cold, but ...', ' not so bad ...']]
    """
    decoding = Decoding(samples, max_new_tokens, top_p, temperature, repetition_penalty)
    check_decoding(lm, decoding)
    how = decoding.to_dict() | {"seed": seed}
    completions = [[""] * samples for _ in prompts]
    with Journal(journal, _settings(lm, prompts, how)) if journal else nullcontext() as kept:
        known = kept.known if kept else {}
        for (i, k), text in known.items():
            completions[i][k] = text
        for one in sample(lm, prompts, **how, batch_size=batch_size, known=known):
            completions[one.prompt][one.sample] = one.text
            if kept:
                kept.add([(one.prompt, one.sample, one.text)])
    return completions


def check_decoding(lm: LoadedModel, how: Decoding) -> None:
    """Raise ToxlocError if a number is out of range, or there is nothing that could write."""
    lm.check_hf("sampling")
    for name, good in (("samples", how.samples >= 1), ("max_new_tokens", 1 <= how.max_new_tokens < lm.context),
                       ("top_p", 0 < how.top_p <= 1), ("temperature", how.temperature >= 0),
                       ("repetition_penalty", how.repetition_penalty > 0)):
        if not good:
            raise ToxlocError(f"{name}={getattr(how, name)} is out of range for {lm.name} (context of {lm.context} "
                              "tokens).")


@torch.inference_mode()
def sample(lm: LoadedModel, prompts: Sequence[str], *, samples: int = 1, max_new_tokens: int = 20, top_p: float = 0.9,
           temperature: float = 1.0, repetition_penalty: float = 1.0, seed: int = 0, batch_size: int | None = None,
           known: Container[tuple[int, int]] = ()) -> Iterator[Completion]:
    """Yield completions as they end, short prompts first; those in `known` are left out. Otherwise as `generate`."""
    rows = encode(lm, prompts, lm.context - max_new_tokens)
    seeds = _seeds(prompts, samples, seed)
    openings = [Opening(rows[i], wanted) for i in sorted(range(len(rows)), key=lambda i: len(rows[i]))
                if (wanted := [((i, k), seeds[i][k]) for k in range(samples) if (i, k) not in known])]
    written = decode(lm, openings, Sampler(temperature, top_p, repetition_penalty), max_new_tokens,
                     batch_size or ROWS_PER_BATCH["cpu" if lm.device.type == "cpu" else "cuda"])
    for (i, k), ids in track(written, "sampling", total=sum(len(one.continuations) for one in openings)):
        yield Completion(i, k, lm.tokenizer.decode(ids, skip_special_tokens=True), len(ids))


def _settings(lm: LoadedModel, prompts: Sequence[str], how: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides completions."""
    texts = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    edits = [intervention.fingerprint for intervention in lm.applied]
    return {"toxloc": __version__, "model": lm.name, "weights": lm.fingerprint, "interventions": edits,
            "prompts": texts, **how}


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[list[int]]:
    """One seed per completion, from the prompt's text, how often it occurred before, the sample and the seed."""
    met: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digests = (hashlib.sha256(f"{seed}/{met[prompt]}/{k}/{prompt}".encode()).digest() for k in range(samples))
        seeds.append([int.from_bytes(digest[:7], "big") for digest in digests])
        met[prompt] += 1
    return seeds
