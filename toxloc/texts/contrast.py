"""Contrast sets: toxic and neutral texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ToxlocError
from ..support.arguments import whole_number
from .chat import Chat, as_chat_name
from .drawing import check_fraction, check_texts, shuffled


@dataclass(frozen=True)
class ContrastSet:
    """Toxic and neutral texts. `localize` finds the difference between them inside a model.

    Attributes:
        toxic: the toxic texts; a tuple, an array or a generator becomes a list.
        neutral: the neutral texts, as `toxic`.
        name: source of the texts.
        paired: whether toxic[i] and neutral[i] are a pair.

    Raises:
        ToxlocError: a side is empty or a single string, a text is empty or cannot be encoded, or a paired
            set has sides of different lengths.

    Example:
        >>> pairs = ContrastSet(["You fool.", "Shut up!"], ["You friend.", "Please wait!"], paired=True)
        >>> len(pairs.toxic)
        2
    """

    toxic: list[str]
    neutral: list[str]
    name: str = "custom"
    paired: bool = False

    def __post_init__(self) -> None:
        for side in ("toxic", "neutral"):
            texts = check_texts(getattr(self, side), f"the {side} side of the contrast set {self.name!r}")
            if not texts:
                raise ToxlocError(f"The contrast set {self.name!r} has no {side} texts; both sides are needed.")
            object.__setattr__(self, side, texts)
        if self.paired and len(self.toxic) != len(self.neutral):
            raise ToxlocError(
                f"A paired contrast set needs as many toxic as neutral texts, not {len(self.toxic)} "
                f"and {len(self.neutral)}."
            )

    @classmethod
    def from_model(cls, lm: Any, *arguments: Any, **options: Any) -> "ContrastSet":
        """Sample a contrast set from a model; the same as `toxloc.contrast_from_model`.

        Args:
            lm: the loaded model.
            *arguments: further positional arguments of `toxloc.contrast_from_model`.
            **options: keyword arguments of `toxloc.contrast_from_model`.

        Example:
            >>> pairs = ContrastSet.from_model(toxloc.load_model(), n=100)     # doctest: +SKIP
        """
        import toxloc  # the only import from a higher room; inside the function, so that it is not circular

        return toxloc.contrast_from_model(lm, *arguments, **options)

    def as_chat(self, lm: Any, chat: Chat | None = None) -> "ContrastSet":
        """Return the same texts as answers in the model's chat template, after a neutral request.

        The tokens of the template and of the request do not count in statistics. Choose the texts first, with
        `without`, `split` or `limited`.

        Args:
            lm: the loaded model.
            chat: the system message, and whether the model thinks; by default as the template does.

        Raises:
            ToxlocError: the model has no chat template, or the template does not accept what is given.

        Example:
            >>> pairs.as_chat(lm).name     # doctest: +SKIP
            'builtin, as chat'
        """
        toxic, neutral = ((chat or Chat()).answers(lm.tokenizer, side) for side in (self.toxic, self.neutral))
        return ContrastSet(toxic, neutral, as_chat_name(self.name), self.paired)

    def in_both_forms(self, lm: Any, chat: Chat | None = None) -> "ContrastSet":
        """Return the texts as they are, and again as answers in the model's chat template; see `as_chat`."""
        other = self.as_chat(lm, chat)
        return ContrastSet(
            [*self.toxic, *other.toxic], [*self.neutral, *other.neutral], f"{self.name}, plain and as chat", self.paired
        )

    def split(self, fraction: float, seed: int = 0) -> "tuple[ContrastSet, ContrastSet]":
        """Split at random into two sets; the first gets `fraction` of each side. Pairs stay together.

        Raises:
            ToxlocError: the fraction is not between 0 and 1, or a side is too small to split.
        """
        check_fraction(fraction)
        toxic = shuffled(len(self.toxic), seed)
        neutral = toxic if self.paired else shuffled(len(self.neutral), seed)
        a, b = round(fraction * len(toxic)), round(fraction * len(neutral))
        return self._take(toxic[:a], neutral[:b]), self._take(toxic[a:], neutral[b:])

    def limited(self, count: int, seed: int = 0) -> "ContrastSet":
        """Return at most `count` texts of each side, drawn at random. Pairs stay together.

        Raises:
            ToxlocError: `count` is less than 1, or `count` or `seed` is not a whole number.
        """
        count = whole_number(count, "count", at_least=1)
        toxic = shuffled(len(self.toxic), seed)[:count]
        neutral = toxic if self.paired else shuffled(len(self.neutral), seed)[:count]
        return self._take(toxic, neutral)

    def without(self, openings: Sequence[str]) -> "ContrastSet":
        """Return the texts that do not begin with any of the openings, ignoring case.

        Use it so that a method is not fitted on texts that begin with the prompts of its evaluation. A pair is dropped
        if either of its texts begins with an opening.

        Raises:
            ToxlocError: a side has no texts left, the openings are a single string, or an opening is empty.

        Example:
            >>> ContrastSet(["You fool, go", "He lied"], ["Good day"]).without(["you fool"]).toxic
            ['He lied']
        """
        beginnings = {opening.strip().lower() for opening in check_texts(openings, "the openings")}
        lengths = sorted({len(beginning) for beginning in beginnings})

        def keep(text: str) -> bool:
            text = text.strip().lower()
            return not any(text[:n] in beginnings for n in lengths)

        if self.paired:
            kept = [i for i in range(len(self.toxic)) if keep(self.toxic[i]) and keep(self.neutral[i])]
            return self._take(kept, kept)
        return self._take(
            [i for i, t in enumerate(self.toxic) if keep(t)], [i for i, t in enumerate(self.neutral) if keep(t)]
        )

    def _take(self, toxic: list[int], neutral: list[int]) -> "ContrastSet":
        return ContrastSet([self.toxic[i] for i in toxic], [self.neutral[i] for i in neutral], self.name, self.paired)
