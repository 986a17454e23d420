"""Sample completions of prompts: `generate`."""

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
from ..texts.chat import end_of_turn
from ..texts.chat_text import ChatText
from ..texts.drawing import check_texts
from ..version import __version__
from .batch import decode
from .decoding import Decoding
from .journal import Journal
from .opening import Opening
from .sampling import Sampler

ROWS_PER_BATCH = {"cpu": 128, "cuda": 1024}


@dataclass(frozen=True)
class Completion:
    """A completion, without its prompt.

    Attributes:
        prompt: index of the prompt.
        sample: index of the completion among those of its prompt.
        text: the completion.
        n_tokens: number of tokens drawn, including an end-of-text token.
    """

    prompt: int
    sample: int
    text: str
    n_tokens: int


def generate(
    lm: LoadedModel,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    max_new_tokens: int = Decoding.max_new_tokens,
    top_p: float = Decoding.top_p,
    temperature: float = Decoding.temperature,
    repetition_penalty: float = Decoding.repetition_penalty,
    seed: int = 0,
    batch_size: int | None = None,
    journal: str | PathLike[str] | None = None,
) -> list[list[str]]:
    """Sample completions of every prompt from the model, with the interventions that are applied to it.

    Args:
        lm: the model; `lm.hf` generates, so hooks on `lm.hooked` alone have no effect here.
        prompts: the prompts, none empty.
        samples: number of completions per prompt.
        max_new_tokens: largest number of tokens in a completion, 20 by default; an end-of-text token ends it earlier,
            and after a `ChatText` the end of the turn does too.
        top_p: nucleus sampling: draw from the smallest set of tokens with at least this probability, .9 by default;
            1 draws from all tokens.
        temperature: divisor of the logits, 1 by default; 0 for greedy decoding.
        repetition_penalty: if above 1, tokens that the prompt or the completion already contains become less likely; 1
            by default.
        seed: seed for sampling. The same seed, machine and version give the same completions for every batch size.
        batch_size: largest number of completions to sample at the same time; by default 128 on a CPU, 1,024 on a GPU.
        journal: file to which every completion is written as soon as it ends. If the file exists and has the same
            model and settings, only the missing completions are sampled, so that a killed run continues.

    Returns:
        One list per prompt with its completions, which do not include the prompt.

    Raises:
        ToxlocError: the prompts are a single string, a prompt is empty or cannot be encoded, a value is out of range,
            `lm` has no Hugging Face model, or the journal cannot be written or belongs to another model or other
            settings.

    Example:
        >>> from toxloc import load_model
        >>> generate(load_model(), ["The weather today is"], samples=2)    # doctest: +SKIP
        [[' a bit cold, but ...', ' not so bad ...']]
    """
    prompts = check_texts(prompts, "the prompts")
    decoding = Decoding(samples, max_new_tokens, top_p, temperature, repetition_penalty)
    check_decoding(lm, decoding)
    completions = [[""] * samples for _ in prompts]
    with Journal(journal, _settings(lm, prompts, decoding, seed)) if journal else nullcontext() as log:
        known = log.known if log else {}
        for (i, k), text in known.items():
            completions[i][k] = text
        for completion in sample(lm, prompts, decoding, seed=seed, batch_size=batch_size, known=known):
            completions[completion.prompt][completion.sample] = completion.text
            if log:
                log.add([(completion.prompt, completion.sample, completion.text)])
    return completions


def check_decoding(lm: LoadedModel, decoding: Decoding) -> None:
    """Check that the model can generate, and that completions fit in its context.

    Raises:
        ToxlocError: `lm` has no Hugging Face model, or `max_new_tokens` leaves no room for a prompt.
    """
    lm.check_hf("sampling")
    if decoding.max_new_tokens >= lm.context:
        raise ToxlocError(
            f"max_new_tokens={decoding.max_new_tokens} is out of range for {lm.name}; give a number "
            f"below its context of {lm.context} tokens."
        )


@torch.inference_mode()
def sample(
    lm: LoadedModel,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    known: Container[tuple[int, int]] = (),
) -> Iterator[Completion]:
    """Yield each completion as soon as it ends, starting with short prompts; `generate` collects the completions.

    Args:
        lm: the model.
        prompts: the prompts, none empty.
        decoding: the decoding options.
        seed: as in `generate`.
        batch_size: as in `generate`.
        known: (prompt, sample) indices of completions to leave out.

    Raises:
        ToxlocError: a prompt is empty.

    Example:
        >>> from toxloc import load_model
        >>> for completion in sample(load_model(), ["You are"], Decoding(samples=2)):    # doctest: +SKIP
        ...     print(completion.sample, completion.text)
    """
    prompts = check_texts(prompts, "the prompts")
    rows = encode(lm, prompts, lm.context - decoding.max_new_tokens)
    seeds = _seeds(prompts, decoding.samples, seed)
    openings = [
        Opening(rows[i], missing)
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i]))
        if (missing := [((i, k), seeds[i][k]) for k in range(decoding.samples) if (i, k) not in known])
    ]
    is_chat = any(isinstance(prompt, ChatText) for prompt in prompts)
    turn_end = end_of_turn(lm.tokenizer) if is_chat else None
    sampler = Sampler(decoding.temperature, decoding.top_p, decoding.repetition_penalty)
    decoded = decode(
        lm,
        openings,
        sampler,
        decoding.max_new_tokens,
        batch_size or ROWS_PER_BATCH["cpu" if lm.device.type == "cpu" else "cuda"],
        () if turn_end is None else (turn_end,),
    )
    total = sum(len(opening.continuations) for opening in openings)
    for (i, k), ids in track(decoded, "sampling", total=total):
        yield Completion(i, k, lm.tokenizer.decode(ids, skip_special_tokens=True), len(ids))


def _settings(lm: LoadedModel, prompts: Sequence[str], decoding: Decoding, seed: int) -> dict[str, Any]:
    """Return the values on which the completions depend; the journal stores them."""
    texts = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    edits = [intervention.fingerprint for intervention in lm.interventions]
    return {
        "toxloc": __version__,
        "model": lm.name,
        "weights": lm.current_fingerprint(),
        "interventions": edits,
        "prompts": texts,
        "n_prompts": len(prompts),
        **decoding.to_dict(),
        "seed": seed,
    }


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[list[int]]:
    """Derive a seed per completion from `seed`, the prompt, the number of its earlier occurrences and the sample."""
    occurrences: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digests = (
            hashlib.sha256(f"{seed}/{occurrences[prompt]}/{k}/{prompt}".encode()).digest() for k in range(samples)
        )
        seeds.append([int.from_bytes(digest[:7], "big") for digest in digests])
        occurrences[prompt] += 1
    return seeds
