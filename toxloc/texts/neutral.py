"""Neutral text in three disjoint parts: to fit, to tune and to check."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ToxlocError
from .drawing import check_texts, shuffled


@dataclass(frozen=True)
class NeutralText:
    """Everyday text in three disjoint parts, so that no cost is measured on text that a method was fitted on.

    Attributes:
        fit: text for the statistics of methods (the curvature C and S).
        tune: text on which the strength of an intervention is tuned to its budget.
        check: text on which the reported cost is measured.
        name: where the texts come from.
    """

    fit: list[str]
    tune: list[str]
    check: list[str]
    name: str = "custom"

    @property
    def texts(self) -> list[str]:
        """The texts of all three parts."""
        return [*self.fit, *self.tune, *self.check]

    @classmethod
    def split(cls, texts: Sequence[str], seed: int = 0, name: str = "custom") -> "NeutralText":
        """Divide texts at random: 30% to fit, 35% to tune, 35% to check. Duplicates are dropped.

        Raises:
            ToxlocError: fewer than 12 different texts, or an empty text.

        Example:
            >>> neutral = NeutralText.split([f"Sentence {i}." for i in range(20)])
            >>> len(neutral.fit), len(neutral.tune), len(neutral.check)
            (6, 7, 7)
        """
        texts = list(dict.fromkeys(texts))
        if len(texts) < 12:
            raise ToxlocError(
                f"Neutral text is divided in three parts and needs at least 12 texts; {name!r} has {len(texts)}."
            )
        check_texts(texts, f"the neutral text {name!r}")
        order = [texts[i] for i in shuffled(len(texts), seed)]
        a, b = round(0.3 * len(order)), round(0.65 * len(order))
        return cls(order[:a], order[a:b], order[b:], name)


AnyNeutral = NeutralText | Sequence[str]  # wherever a cost is measured


def measured_texts(neutral: AnyNeutral) -> Sequence[str]:
    """Return the texts that a cost is measured on: the part `check` of neutral text, or a list of texts as it is."""
    return neutral.check if isinstance(neutral, NeutralText) else neutral
