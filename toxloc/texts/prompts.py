"""Prompt sets: openings for a model to complete."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from .drawing import check_texts, shuffled

if TYPE_CHECKING:
    pass
PROVOCATIVE, EVERYDAY = "provocative", "everyday"


@dataclass(frozen=True)
class PromptSet:
    """Openings for a model to complete.

    Attributes:
        texts: the openings.
        kinds: "provocative" or "everyday" for each, where known.
        scores: the opening's own toxicity from 0 to 1, where known.
        name: where they come from.
    """

    texts: list[str]
    kinds: list[str] | None = None
    scores: list[float] | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.texts:
            raise ToxlocError(f"The prompt set {self.name!r} is empty.")
        check_texts(self.texts, f"the prompt set {self.name!r}")

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, kind: str) -> "PromptSet | None":
        """Return the prompts of one kind, or None if there are none."""
        if self.kinds is None:
            return None
        kept = [i for i, k in enumerate(self.kinds) if k == kind]
        return self.take(kept) if kept else None

    def sampled(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts of all kinds together, drawn at random, in their old order."""
        return self.take(sorted(shuffled(len(self.texts), seed)[:count]))

    def limited(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts of each kind, drawn at random, in their old order."""
        kinds = self.kinds or [""] * len(self.texts)
        kept = []
        for kind in dict.fromkeys(kinds):
            members = [i for i, k in enumerate(kinds) if k == kind]
            kept += [members[i] for i in shuffled(len(members), seed)[:count]]
        return self.take(sorted(kept))

    def cut(self, words: int) -> "PromptSet":
        """Return the first `words` words of each text that has more; of those that begin alike, one.

        Raises:
            ToxlocError: no text has more.

        Example:
            >>> PromptSet(["Once upon a time there was a cat", "The end"]).cut(4).texts
            ['Once upon a time']
        """
        heads = {i: " ".join(text.split()[:words]) for i, text in enumerate(self.texts) if len(text.split()) > words}
        kept = {head: i for i, head in reversed(heads.items())}  # the first of those alike
        if not kept:
            raise ToxlocError(f"No text of {self.name!r} has more than {words} words; take fewer.")
        short = self.take(sorted(kept.values()))
        return replace(short, texts=[heads[i] for i in sorted(kept.values())])

    def split(self, fraction: float, seed: int = 0) -> "tuple[PromptSet, PromptSet]":
        """Divide at random into two sets, the first with `fraction` of the prompts, each in the old order.

        Raises:
            ToxlocError: a side would be empty.
        """
        order = shuffled(len(self.texts), seed)
        cut = round(fraction * len(order))
        return self.take(sorted(order[:cut])), self.take(sorted(order[cut:]))

    def take(self, kept: list[int]) -> "PromptSet":
        """Return the prompts at these places."""
        return PromptSet([self.texts[i] for i in kept],
                         None if self.kinds is None else [self.kinds[i] for i in kept],
                         None if self.scores is None else [self.scores[i] for i in kept], self.name)
