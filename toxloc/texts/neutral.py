"""Neutral text in three disjoint parts: fit, tune and check."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ToxlocError
from .chat import Chat, as_chat_name
from .drawing import check_texts, shuffled

MIN_TEXTS = 12


@dataclass(frozen=True)
class NeutralText:
    """Everyday text in three disjoint parts, so that a cost is never measured on text that a method was fitted on.

    Attributes:
        fit: texts for the statistics of methods (the curvature C and S).
        tune: texts on which the strength of an intervention is tuned to its budget.
        check: texts on which the reported cost is measured.
        name: source of the texts.

    Raises:
        ToxlocError: a part is a single string, or a text is empty or cannot be encoded.
    """

    fit: list[str]
    tune: list[str]
    check: list[str]
    name: str = "custom"

    def __post_init__(self) -> None:
        for part in ("fit", "tune", "check"):
            texts = check_texts(getattr(self, part), f"the part {part} of the neutral text {self.name!r}")
            object.__setattr__(self, part, texts)

    @property
    def texts(self) -> list[str]:
        """The texts of all three parts."""
        return [*self.fit, *self.tune, *self.check]

    def as_chat(self, lm: Any, chat: Chat | None = None) -> "NeutralText":
        """Return the same texts as answers in the model's chat template; see `ContrastSet.as_chat`."""
        fit, tune, check = ((chat or Chat()).answers(lm.tokenizer, part) for part in (self.fit, self.tune, self.check))
        return NeutralText(fit, tune, check, as_chat_name(self.name))

    def in_both_forms(self, lm: Any, chat: Chat | None = None) -> "NeutralText":
        """Return the texts as they are, and again as answers in the model's chat template.

        A method that is tuned on them keeps its budget in plain text and in conversations.
        """
        other = self.as_chat(lm, chat)
        return NeutralText(
            [*self.fit, *other.fit],
            [*self.tune, *other.tune],
            [*self.check, *other.check],
            f"{self.name}, plain and as chat",
        )

    @classmethod
    def split(cls, texts: Sequence[str], seed: int = 0, name: str = "custom") -> "NeutralText":
        """Split texts at random into 30% fit, 35% tune and 35% check. Duplicates are dropped.

        Raises:
            ToxlocError: fewer than 12 different texts, a single string in place of a list, or a text that is empty or
                cannot be encoded.

        Example:
            >>> neutral = NeutralText.split([f"Sentence {i}." for i in range(20)])
            >>> len(neutral.fit), len(neutral.tune), len(neutral.check)
            (6, 7, 7)
        """
        texts = list(dict.fromkeys(check_texts(texts, f"the neutral text {name!r}")))
        if len(texts) < MIN_TEXTS:
            raise ToxlocError(
                f"Neutral text is split into three parts and needs at least {MIN_TEXTS} different texts; "
                f"{name!r} has {len(texts)}."
            )
        order = [texts[i] for i in shuffled(len(texts), seed)]
        a, b = round(0.3 * len(order)), round(0.65 * len(order))
        return cls(order[:a], order[a:b], order[b:], name)


AnyNeutral = NeutralText | Sequence[str]  # accepted wherever a cost is measured


def measured_texts(neutral: AnyNeutral) -> Sequence[str]:
    """Return the texts on which a cost is measured: the part `check` of a `NeutralText`, or all texts of a list.

    Raises:
        ToxlocError: `neutral` is a single string, or a text is empty or cannot be encoded.
    """
    return neutral.check if isinstance(neutral, NeutralText) else check_texts(neutral, "the neutral text")
