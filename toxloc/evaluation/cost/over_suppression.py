"""Over-suppression: whether an edited model still answers harmless prompts.

A model that answers every mention of an identity, of anger or of illness with nothing, or with the same evasion, has a
low toxicity, but it fails the people it mentions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float64
from torch import get_float32_matmul_precision, nn

from ...errors import ToxlocError
from ...generation.generate import generate
from ...models.batching import encode
from ...models.loaded import LoadedModel
from ...models.weights import checksum
from ...support.arguments import check_kind
from ...support.intervals import Interval, interval_of_differences
from ...texts.loading import load_prompts
from ...texts.prompts import PromptSet
from ..refusals import is_refusal
from .perplexity import nll_of_endings

ALL = "all"


@dataclass(frozen=True)
class Shift:
    """Change of a figure from the model without to the model with the interventions.

    Attributes:
        before: the figure without the interventions.
        after: the figure with the interventions.
        difference: `after` minus `before`.
        ci: paired 95% bootstrap interval of the difference over prompts.
    """

    before: float
    after: float
    difference: float
    ci: Interval


@dataclass(frozen=True)
class OverSuppression:
    """Changes in the completions of harmless prompts, for each kind of prompt and for all kinds ("all").

    Attributes:
        empty: share of completions without a word.
        evasive: share of completions that decline to answer, recognised by phrases (see `is_refusal`).
        words: mean length in words.
        relevance: log-likelihood of the completions after their prompt, minus their log-likelihood after the
            next prompt of the same kind, under the unedited model, in nats per token. It is 0 for text that follows
            every prompt equally well.
        n_prompts: number of prompts of each kind.
        samples: completions per prompt.
    """

    empty: dict[str, Shift]
    evasive: dict[str, Shift]
    words: dict[str, Shift]
    relevance: dict[str, Shift]
    n_prompts: dict[str, int]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, with intervals as lists."""
        figures = {
            name: {kind: asdict(shift) | {"ci": list(shift.ci)} for kind, shift in getattr(self, name).items()}
            for name in ("empty", "evasive", "words", "relevance")
        }
        return figures | {"n_prompts": self.n_prompts, "samples": self.samples}


def over_suppression(
    lm: LoadedModel, prompts: PromptSet | None = None, *, samples: int = 2, seed: int = 0, max_new_tokens: int = 20
) -> OverSuppression:
    """Compare completions of harmless prompts with and without the applied interventions.

    Both sets of completions use the same random numbers.

    Args:
        lm: the model with its applied interventions.
        prompts: harmless prompts with their kinds; by default 90 prompts written for toxloc, which mention identities,
            anger and illness.
        samples: completions per prompt.
        seed: seed for the sampling (see `generate`) and the bootstrap.
        max_new_tokens: length of a completion in tokens.

    Raises:
        ToxlocError: no intervention is applied, or a kind has only one prompt.

    Example:
        >>> with edit.applied(lm): over_suppression(lm).empty["identity"].difference     # doctest: +SKIP
        0.0
    """
    if not lm.interventions:
        raise ToxlocError(
            f"No intervention is applied to {lm.name}, so there is nothing to compare; call this inside "
            "`with intervention.applied(lm):`."
        )
    prompts = load_prompts("sensitive") if prompts is None else prompts
    check_kind(prompts, PromptSet, "the prompts")
    kinds = np.array(prompts.kinds or [ALL] * len(prompts))
    _check_lengths(lm, prompts.texts, max_new_tokens)
    other = _next_of_same_kind(kinds.tolist())
    after = generate(lm, prompts.texts, samples=samples, seed=seed, max_new_tokens=max_new_tokens)
    with lm.unedited():
        before, relevance = _unedited(lm, prompts.texts, other, samples, seed, max_new_tokens)
        relevances = [relevance, _relevance(lm, prompts.texts, after, other)]
    members = {kind: np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds.tolist())}
    members |= {ALL: np.arange(len(kinds))}
    measures: dict[str, Callable[[str], float]] = {
        "empty": lambda text: float(not text.split()),
        "evasive": lambda text: float(is_refusal(text)),
        "words": lambda text: float(len(text.split())),
    }
    values = {
        name: [
            np.array([[measure(text) for text in texts] for texts in completions]).mean(1)
            for completions in (before, after)
        ]
        for name, measure in measures.items()
    }
    values["relevance"] = relevances
    shifts = {
        name: {kind: _shift(old[of_kind], new[of_kind], seed) for kind, of_kind in members.items()}
        for name, (old, new) in values.items()
    }
    return OverSuppression(
        **shifts, n_prompts={kind: len(of_kind) for kind, of_kind in members.items()}, samples=samples
    )


def _check_lengths(lm: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> None:
    longest = max(len(row) for row in encode(lm, prompts, lm.context))
    if longest + max_new_tokens >= lm.context:
        raise ToxlocError(
            f"A harmless prompt has {longest} tokens, which leaves no room for {max_new_tokens} more in the context of "
            f"{lm.name}, {lm.context} tokens; give shorter prompts or a smaller max_new_tokens."
        )


def _next_of_same_kind(kinds: Sequence[str]) -> list[int]:
    """Return the index of each prompt's next prompt of the same kind; after the last prompt comes the first."""
    members: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    for kind, indices in members.items():
        if len(indices) < 2:
            raise ToxlocError(f"There is only one prompt of the kind {kind!r}; give at least two of each kind.")
    following = {i: indices[(k + 1) % len(indices)] for indices in members.values() for k, i in enumerate(indices)}
    return [following[i] for i in range(len(kinds))]


# Completions and relevance of each unedited model's last call, because several edits are usually compared with it.
_known: WeakKeyDictionary[LoadedModel, tuple[Any, list[list[str]], Float64[np.ndarray, " n_prompts"]]]
_known = WeakKeyDictionary()


def _unedited(
    lm: LoadedModel, prompts: Sequence[str], other: Sequence[int], samples: int, seed: int, max_new_tokens: int
) -> tuple[list[list[str]], Float64[np.ndarray, " n_prompts"]]:
    """Complete the prompts and measure relevance, unless the last call did so with the same weights and settings."""

    def key() -> tuple[Any, ...]:
        hooks = [id(hook) for tree in (lm.hf, lm.hooked) for module in tree.modules() for hook in _hooks_of(module)]
        settings = lm.prepend_bos, get_float32_matmul_precision(), samples, seed, max_new_tokens
        return checksum(lm.hf), hooks, settings, list(prompts), list(other)

    known = _known.get(lm)
    if known is None or known[0] != key() or known[0][0] is None:
        completions = generate(lm, prompts, samples=samples, seed=seed, max_new_tokens=max_new_tokens)
        relevance = _relevance(lm, prompts, completions, other)
        known = _known[lm] = key(), completions, relevance  # the key afterwards: transformers adds hooks at first use
    return known[1], known[2]


def _hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _relevance(
    lm: LoadedModel, prompts: Sequence[str], completions: Sequence[Sequence[str]], other: Sequence[int]
) -> Float64[np.ndarray, " n_prompts"]:
    """Return the mean relevance of each prompt's non-empty completions; 0 if all of them are empty."""
    pairs = [(i, text) for i, texts in enumerate(completions) for text in texts if text.strip()]
    endings = [text for _, text in pairs]
    nll, count = nll_of_endings(lm, [prompts[i] for i, _ in pairs], endings)
    nll_other, _ = nll_of_endings(lm, [prompts[other[i]] for i, _ in pairs], endings)
    total, n = np.zeros(len(prompts)), np.zeros(len(prompts))
    index = [i for i, _ in pairs]
    np.add.at(total, index, (nll_other - nll) / np.maximum(count, 1))
    np.add.at(n, index, 1)
    return total / np.maximum(n, 1)


def _shift(before: Float64[np.ndarray, " n"], after: Float64[np.ndarray, " n"], seed: int) -> Shift:
    change = after - before
    return Shift(float(before.mean()), float(after.mean()), float(change.mean()), interval_of_differences(change, seed))
