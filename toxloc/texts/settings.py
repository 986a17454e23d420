"""Settings for the texts of a fit; importable without torch."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator

from ..errors import ToxlocError
from ..support.progress import note
from ..support.settings import Settings, option
from .chat import Chat, check_template, thinking_switch
from .contrast import ContrastSet
from .neutral import NeutralText

READ, COUNT = "What to read", "How to measure"
T = TypeVar("T", ContrastSet, NeutralText)


def _on_or_off(value: object) -> object:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _true_or_false(value: object) -> object:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


class ChatSettings(Settings):
    """Settings for conversations with a chat model."""

    chat: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = option(
        "auto",
        "put prompts and texts into the chat template of the model: on, off, or auto, which is on if the model has a "
        "template",
        panel=READ,
    )
    system: str | None = option(None, "system message of every conversation; default: none", panel=READ)
    thinking: Annotated[bool | None, BeforeValidator(_true_or_false)] = option(
        None, "whether the model thinks before it answers: on or off; default: as its chat template does", panel=READ
    )

    def conversation(self, tokenizer: Any) -> Chat | None:
        """Return how texts become conversations; None for plain text.

        Raises:
            ToxlocError: `chat` is "on" and there is no chat template; or there is a system message or `thinking`, but
                the texts are plain.
        """
        is_on = self.chat in ("on", "both") or (self.chat == "auto" and tokenizer.chat_template is not None)
        if not is_on:
            for name, value in (("system", self.system), ("thinking", self.thinking)):
                if value is not None:
                    raise ToxlocError(f"{name}={value!r} is for conversations, but texts are plain; turn chat on.")
            return None
        check_template(tokenizer)
        if self.thinking is not None:
            thinking_switch(tokenizer)
        return Chat(self.system, self.thinking)

    def announce(self, name: str, tokenizer: Any) -> None:
        """Note that texts become conversations, if this follows from the model and not from a setting."""
        if self.chat == "auto" and self.conversation(tokenizer) is not None:
            note(f"{name} has a chat template, so it reads conversations. To read plain text, turn chat off.")


class NeutralSettings(Settings):
    """Settings for the everyday text."""

    neutral: str = option(
        "builtin", "everyday text on which the cost is kept within its budget: builtin or a file", panel=READ
    )
    max_neutral: int = option(500, "draw at most this many everyday texts", panel=COUNT, ge=12)


class FitTextSettings(NeutralSettings, ChatSettings):
    """Settings for the texts of a fit: a contrast set, and everyday text for the budget."""

    chat: Annotated[Literal["auto", "on", "off", "both"], BeforeValidator(_on_or_off)] = option(  # type: ignore[assignment]
        "auto",
        "put texts into the chat template of the model: on, off, both (plain text and conversations, each within the "
        "budget), or auto, which is on if the model has a template",
        panel=READ,
    )

    contrast: str = option(
        "builtin",
        "toxic and neutral texts to learn the difference from: builtin, a CSV, TSV, "
        "JSONL or Parquet file, or a hub dataset",
        panel=READ,
    )
    max_texts: int = option(600, "draw at most this many contrast texts of each side", panel=COUNT, ge=8)

    def in_form(self, lm: Any, texts: T) -> T:
        """Return texts of a fit as plain text, as answers in the chat template, or as both."""
        chat = self.conversation(lm.tokenizer)
        if chat is None:
            return texts
        return texts.in_both_forms(lm, chat) if self.chat == "both" else texts.as_chat(lm, chat)
