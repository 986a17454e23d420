"""Decoding options, with their defaults and valid ranges."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ToxlocError


@dataclass(frozen=True)
class Decoding:
    """Options for sampling completions, as in `generate`.

    Attributes:
        samples: completions per prompt, at least 1.
        max_new_tokens: largest number of tokens in a completion, at least 1.
        top_p: nucleus sampling: draw from the smallest set of tokens with at least this probability
            (Holtzman et al. 2020, arXiv:1904.09751). Above 0 and at most 1; 1 draws from all tokens.
        temperature: divisor of the logits, at least 0; 0 takes the most likely token (greedy decoding).
        repetition_penalty: penalty on tokens that the text already contains: positive logits are divided by it, and
            negative logits are multiplied by it (Keskar et al. 2019, arXiv:1909.05858). Above 0; 1 changes nothing.

    Raises:
        ToxlocError: a value is out of range.

    Example:
        >>> Decoding(samples=25, temperature=0.7).top_p
        0.9
    """

    samples: int = 5
    max_new_tokens: int = 20
    top_p: float = 0.9
    temperature: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, valid, values in (
            ("samples", self.samples >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not valid:
                raise ToxlocError(f"{name}={getattr(self, name)} is out of range; give a number {values}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dictionary, by name."""
        return asdict(self)
