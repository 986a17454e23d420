"""Neutral text in three disjoint parts: to fit, to tune and to check."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from .drawing import check_texts, shuffled

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class NeutralText:
    """Everyday text in three disjoint parts, so that no cost is measured on text that was fitted.

    Attributes:
        fit: statistics see it (the curvature C and S).
        tune: the strength of an intervention is tuned to its budget on it.
        check: the cost that is reported is measured on it.
        name: where it comes from.
    """

    fit: list[str]
    tune: list[str]
    check: list[str]
    name: str = "custom"

    @property
    def texts(self) -> list[str]:
        """All three parts together."""
        return [*self.fit, *self.tune, *self.check]

    @classmethod
    def split(cls, texts: Sequence[str], seed: int = 0, name: str = "custom") -> "NeutralText":
        """Divide texts at random: 30% to fit, 35% to tune, 35% to check.

        Raises:
            ToxlocError: fewer than 12 texts.
        """
        texts = list(dict.fromkeys(texts))
        if len(texts) < 12:
            raise ToxlocError(f"Neutral text is divided in three parts and needs at least 12 texts; {name!r} has "
                              f"{len(texts)}.")
        check_texts(texts, f"the neutral text {name!r}")
        order = [texts[i] for i in shuffled(len(texts), seed)]
        a, b = round(0.3 * len(order)), round(0.65 * len(order))
        return cls(order[:a], order[a:b], order[b:], name)
