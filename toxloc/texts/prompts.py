"""Prompt sets: openings for a model to complete."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeGuard

from ..errors import ToxlocError
from ..support.arguments import as_list, whole_number
from .chat import Chat, as_chat_name
from .chat_text import ChatText
from .drawing import check_fraction, check_texts, shuffled
from .languages import language_code

PROVOCATIVE, EVERYDAY = "provocative", "everyday"


def is_score(value: object) -> TypeGuard[float]:
    """Whether a value is a toxicity score: a number from 0 to 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages that begins and ends with one of the user."""
    if not isinstance(value, list) or len(value) % 2 == 0:
        return False
    return all(isinstance(turn, str) and bool(turn.strip()) for turn in value)


@dataclass(frozen=True)
class PromptSet:
    """Openings for a model to complete.

    Attributes:
        texts: the openings; a tuple, an array or a generator becomes a list.
        kinds: "provocative" or "everyday" for each opening, or None if unknown.
        scores: toxicity of each opening, from 0 to 1, or None if unknown.
        name: source of the openings.
        languages: language of each opening, or None if unknown; codes such as "pt-BR" become "pt" (see
            `toxloc.texts.languages.language_code`), and "und" means undetermined.
        categories: category of each opening by a definition of your choice, such as "insult", or None if there are
            none.
        turns: for requests to a chat model, the messages of each conversation so far: of the user and, in between, of
            the assistant. `texts` are their last messages. None for openings.

    Raises:
        ToxlocError: no texts, a single string in place of a list, a text that is empty or cannot be encoded, kinds,
            scores, languages or categories that are of a wrong type or not one per text, or an unknown language.

    Example:
        >>> len(PromptSet(["You are such a", "The soup needs"], ["provocative", "everyday"]).only("everyday"))
        1
    """

    texts: list[str]
    kinds: list[str] | None = None
    scores: list[float] | None = None
    name: str = "custom"
    languages: list[str] | None = None
    categories: list[str] | None = None
    turns: list[list[str]] | None = None

    def __post_init__(self) -> None:
        texts = check_texts(self.texts, f"the prompt set {self.name!r}")
        if not texts:
            raise ToxlocError(f"The prompt set {self.name!r} is empty.")
        object.__setattr__(self, "texts", texts)
        self._check("kinds", lambda kind: isinstance(kind, str), "a string")
        self._check("scores", is_score, "a number from 0 to 1")
        self._check("languages", lambda language: isinstance(language, str), "a string")
        self._check("categories", lambda category: isinstance(category, str) and bool(category.strip()), "a string")
        self._check("turns", is_conversation, "a list of messages that begins and ends with one of the user")
        if self.languages is not None:
            object.__setattr__(self, "languages", [language_code(language) for language in self.languages])

    def _check(self, field: str, valid: Callable[[object], bool], what: str) -> None:
        """Store a field as a list, after the check that it has a valid value for every text."""
        if getattr(self, field) is None:
            return
        values = as_list(getattr(self, field), f"the {field} of the prompt set {self.name!r}")
        wrong = [value for value in values if not valid(value)]
        if wrong or len(values) != len(self.texts):
            raise ToxlocError(
                f"The {field} of the prompt set {self.name!r} must be {what} for each of the {len(self.texts)} texts; "
                + (f"{wrong[0]!r} is not." if wrong else f"there are {len(values)}.")
            )
        object.__setattr__(self, field, values)

    def __len__(self) -> int:
        return len(self.texts)

    def as_chat(self, lm: Any, chat: Chat | None = None) -> "PromptSet":
        """Return the prompts as conversations in the model's chat template, which the model is to answer.

        A complete sentence is sent unchanged; the user asks to continue a text that is no complete sentence. Prompts
        that are in the template already are left as they are.

        Args:
            lm: the loaded model.
            chat: the system message, whether the model thinks, and the request to continue a text.

        Raises:
            ToxlocError: the model has no chat template, or the template does not accept what is given.

        Example:
            >>> load_prompts("requests").as_chat(lm).name     # doctest: +SKIP
            'requests, as chat'
        """
        chat = chat or Chat()
        turns = self.turns or [[chat.request(text)] for text in self.texts]
        texts: list[str] = [
            text if isinstance(text, ChatText) else chat.asked(lm.tokenizer, messages)
            for text, messages in zip(self.texts, turns, strict=True)
        ]
        return replace(self, texts=texts, name=as_chat_name(self.name))

    def only(self, kind: str) -> "PromptSet | None":
        """Return the prompts of one kind, or None if there are none."""
        if self.kinds is None:
            return None
        kept = [i for i, k in enumerate(self.kinds) if k == kind]
        return self.take(kept) if kept else None

    def sampled(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts, drawn at random regardless of kind, in their original order.

        Raises:
            ToxlocError: `count` is less than 1, or `count` or `seed` is not a whole number.
        """
        count = whole_number(count, "count", at_least=1)
        return self.take(sorted(shuffled(len(self.texts), seed)[:count]))

    def limited(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts of each kind, drawn at random, in their original order.

        Raises:
            ToxlocError: `count` is less than 1, or `count` or `seed` is not a whole number.
        """
        count = whole_number(count, "count", at_least=1)
        kinds = self.kinds or [""] * len(self.texts)
        kept = []
        for kind in dict.fromkeys(kinds):
            members = [i for i, k in enumerate(kinds) if k == kind]
            kept += [members[i] for i in shuffled(len(members), seed)[:count]]
        return self.take(sorted(kept))

    def cut(self, words: int) -> "PromptSet":
        """Truncate longer texts to `words` words; drop shorter ones and duplicates.

        A text of exactly `words` words is dropped too: a prompt is the beginning of a longer text.

        Raises:
            ToxlocError: no text has more than `words` words, or `words` is less than 1 or not a whole number.

        Example:
            >>> PromptSet(["Once upon a time there was a cat", "The end"]).cut(4).texts
            ['Once upon a time']
        """
        words = whole_number(words, "words", at_least=1)
        beginnings = {
            i: " ".join(text.split()[:words]) for i, text in enumerate(self.texts) if len(text.split()) > words
        }
        if not beginnings:
            raise ToxlocError(f"No text of {self.name!r} has more than {words} words; choose a smaller number.")
        first = {beginning: i for i, beginning in reversed(beginnings.items())}  # keeps the first of several duplicates
        kept = sorted(first.values())
        return replace(self.take(kept), texts=[beginnings[i] for i in kept])

    def split(self, fraction: float, seed: int = 0) -> "tuple[PromptSet, PromptSet]":
        """Split at random into two sets; the first gets `fraction` of the prompts. Both keep the original order.

        Raises:
            ToxlocError: the fraction is not between 0 and 1, or a set would be empty.
        """
        check_fraction(fraction)
        order = shuffled(len(self.texts), seed)
        cut = round(fraction * len(order))
        return self.take(sorted(order[:cut])), self.take(sorted(order[cut:]))

    def take(self, kept: list[int]) -> "PromptSet":
        """Return the prompts at these positions, in this order."""
        names = ("texts", "kinds", "scores", "languages", "categories", "turns")
        fields = {name: getattr(self, name) for name in names}
        taken: dict[str, Any] = {
            name: [values[i] for i in kept] for name, values in fields.items() if values is not None
        }
        return replace(self, **taken)
