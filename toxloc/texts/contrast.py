"""Contrast sets: toxic and neutral texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from .drawing import check_texts, shuffled
from .prompts import PromptSet

if TYPE_CHECKING:
    from ..evaluation.evaluators.base import Evaluator
    from ..models.loaded import LoadedModel


@dataclass(frozen=True)
class ContrastSet:
    """Toxic and neutral texts whose difference is to be found inside a model.

    Attributes:
        toxic: the toxic texts.
        neutral: the neutral texts.
        name: where they come from.
        paired: whether toxic[i] and neutral[i] belong together.
    """

    toxic: list[str]
    neutral: list[str]
    name: str = "custom"
    paired: bool = False

    def __post_init__(self) -> None:
        for side in ("toxic", "neutral"):
            texts = getattr(self, side)
            if not texts:
                raise ToxlocError(f"The contrast set {self.name!r} has no {side} texts; both sides are needed.")
            check_texts(texts, f"the {side} side of the contrast set {self.name!r}")
        if self.paired and len(self.toxic) != len(self.neutral):
            raise ToxlocError(f"A paired contrast set needs as many toxic as neutral texts, not {len(self.toxic)} "
                              f"and {len(self.neutral)}.")

    @classmethod
    def from_model(cls, lm: "LoadedModel", prompts: "PromptSet | None" = None,
                   evaluators: "Sequence[str | Evaluator]" = ("toxloc-guard", "profanity-check"), n: int = 200, *,
                   samples: int = 4, max_rounds: int = 5, max_new_tokens: int = 20, seed: int = 0) -> "ContrastSet":
        """Sample a contrast set from a model, so that it can be localized with no dataset at all.

        Completions that all evaluators call toxic are paired with completions that all call neutral: of the same
        prompt where there is one, and of the nearest length. A text is a prompt with its completion.

        Args:
            lm: the model.
            prompts: openings to complete; by default the built-in provocative ones.
            evaluators: two judges or more, best; a text must convince all of them. Toxic is a score at or over a
                judge's threshold, neutral one under .25 (and under the threshold).
            n: pairs wanted. Fewer come back if `max_rounds` do not yield so many.
            samples: completions per prompt in a round.
            max_rounds: rounds of sampling at most.
            max_new_tokens: length of a completion in tokens.
            seed: of the sampling.

        Raises:
            ToxlocError: fewer than 8 pairs were found.

        Example:
            >>> pairs = ContrastSet.from_model(toxloc.load_model(), n=100)     # doctest: +SKIP
        """
        from ..evaluation.sampled_contrast import (
            contrast_from_model,  # which stands on evaluators and generation, below this file
        )

        return contrast_from_model(lm, prompts, evaluators, n, samples=samples, max_rounds=max_rounds,
                                   max_new_tokens=max_new_tokens, seed=seed)

    def split(self, fraction: float, seed: int = 0) -> "tuple[ContrastSet, ContrastSet]":
        """Divide at random into two sets, the first with `fraction` of each side. Pairs stay together.

        Raises:
            ToxlocError: the fraction is not between 0 and 1, or a side is too small to divide.
        """
        if not 0 < fraction < 1:
            raise ToxlocError(f"A fraction between 0 and 1 is needed, not {fraction}.")
        toxic = shuffled(len(self.toxic), seed)
        neutral = toxic if self.paired else shuffled(len(self.neutral), seed)
        a, b = round(fraction * len(toxic)), round(fraction * len(neutral))
        return self._take(toxic[:a], neutral[:b]), self._take(toxic[a:], neutral[b:])

    def limited(self, count: int, seed: int = 0) -> "ContrastSet":
        """Return at most `count` texts of each side, drawn at random."""
        toxic = shuffled(len(self.toxic), seed)[:count]
        neutral = toxic if self.paired else shuffled(len(self.neutral), seed)[:count]
        return self._take(toxic, neutral)

    def without(self, openings: Sequence[str]) -> "ContrastSet":
        """Return the texts that do not begin with any of the openings (what is judged must not be fitted on)."""
        heads = {opening.strip().lower() for opening in openings}
        lengths = sorted({len(head) for head in heads})

        def free(text: str) -> bool:
            text = text.strip().lower()
            return not any(text[:n] in heads for n in lengths)

        if self.paired:
            kept = [i for i in range(len(self.toxic)) if free(self.toxic[i]) and free(self.neutral[i])]
            return self._take(kept, kept)
        return self._take([i for i, t in enumerate(self.toxic) if free(t)],
                          [i for i, t in enumerate(self.neutral) if free(t)])

    def _take(self, toxic: list[int], neutral: list[int]) -> "ContrastSet":
        return ContrastSet([self.toxic[i] for i in toxic], [self.neutral[i] for i in neutral], self.name, self.paired)
