"""Openings: prompts as token ids, with the continuations to sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Opening:
    """A prompt to continue.

    Attributes:
        ids: the token ids of the prompt.
        continuations: a name and a seed for each continuation to sample.
    """

    ids: list[int]
    continuations: Sequence[tuple[Any, int]]
