"""Texts in the chat template of a model."""

from collections.abc import Sequence


class ChatText(str):
    r"""A conversation as one text in a chat template, with the parts of it that are not the template's own.

    It is used wherever toxloc takes a text. The model reads the whole text; statistics, likelihoods and costs count
    only the tokens of `spans`, so that the words of the template and of the request do not dilute them.

    Attributes:
        spans: beginning and end, in characters, of each part that counts. For a prompt nothing counts: only its
            completions are judged.

    Example:
        >>> text = ChatText("user: Hi\nassistant: Good morning.", [(20, 33)])
        >>> [text[a:b] for a, b in text.spans]
        ['Good morning.']
    """

    spans: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, spans: Sequence[tuple[int, int]] = ()) -> "ChatText":
        self = super().__new__(cls, text)
        self.spans = tuple((int(begin), int(end)) for begin, end in spans)
        return self

    def __reduce__(self) -> tuple[type, tuple[str, tuple[tuple[int, int], ...]]]:
        return ChatText, (str(self), self.spans)

    def __repr__(self) -> str:
        return f"ChatText({super().__repr__()}, {list(self.spans)})"
