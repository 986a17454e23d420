"""Requests to chat models: rows that hold a conversation, and the layout of XSTest."""

from collections.abc import Sequence

from ..errors import ToxlocError
from .layouts import CATEGORY_COLUMNS, category_in, find_column, text_in, wrong_value
from .prompts import PromptSet, is_conversation
from .records import Row

TURNS, MESSAGES = "turns", "messages"
BORDERLINE, UNSAFE, HARMLESS = "borderline", "unsafe", "harmless"  # kinds of requests, besides "provocative"
XSTEST = ("prompt", "type", "label", "focus")


def has_conversations(rows: Sequence[Row]) -> bool:
    """Return whether a table has a column of conversations: `turns` or `messages`."""
    return any(isinstance(row.get(name), list) for row in rows for name in (TURNS, MESSAGES))


def conversations(rows: Sequence[Row], name: str) -> PromptSet:
    """Read rows with conversations.

    `turns` lists the messages of the user and, in between, of the assistant. `messages` lists objects with `role` and
    `content`, as chat APIs take them. The optional columns `kind` and `category` are read too.

    Raises:
        ToxlocError: a conversation does not alternate between user and assistant, or does not end with the user.
    """
    turns = [_turns(row, f"row {i} of {name}") for i, row in enumerate(rows)]
    category = find_column(list(rows[0]), None, CATEGORY_COLUMNS)
    return PromptSet(
        [messages[-1] for messages in turns],
        [str(row["kind"]) for row in rows] if "kind" in rows[0] else None,
        name=name,
        categories=None
        if category is None
        else [category_in(row, category, f"row {i} of {name}") for i, row in enumerate(rows)],
        turns=turns,
    )


def _turns(row: Row, where: str) -> list[str]:
    value = row.get(TURNS)
    if value is None:
        roles = ("user", "assistant")
        messages = row.get(MESSAGES)
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and message.get("role") == roles[i % 2] for i, message in enumerate(messages)
        ):
            raise wrong_value(messages, MESSAGES, where, "a conversation of user and assistant in turn, without system")
        value = [message.get("content") for message in messages]
    if not is_conversation(value):
        raise wrong_value(value, TURNS, where, "a list of messages that begins and ends with one of the user")
    return list(value)


def is_xstest(rows: Sequence[Row]) -> bool:
    """Return whether a table has the layout of XSTest (Röttger et al. 2024, arXiv:2308.01263)."""
    return all(column in rows[0] for column in XSTEST)


def xstest(rows: Sequence[Row], name: str) -> PromptSet:
    """Read XSTest: its safe prompts are "borderline", its contrast prompts "unsafe"; the type is the category.

    Raises:
        ToxlocError: a label is neither "safe" nor "unsafe", or a prompt is missing.
    """
    kinds = {"safe": BORDERLINE, "unsafe": UNSAFE}
    texts, of_each = [], []
    for i, row in enumerate(rows):
        where = f"row {i} of {name}"
        text, label = text_in(row, "prompt", where), row["label"]
        if text is None or label not in kinds:
            raise ToxlocError(
                f"In {where}, a prompt of XSTest has the label {label!r}; give a text, and safe or unsafe."
            )
        texts.append(text)
        of_each.append(kinds[label])
    return PromptSet(
        texts, of_each, name=name, categories=[str(row["type"]) for row in rows], turns=[[text] for text in texts]
    )
