"""Conversations in the chat template of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ToxlocError
from ..support.arguments import short_repr
from .chat_text import ChatText

REQUEST = "Go on."  # the user's turn before a text that becomes an answer
SENTENCE_ENDS = (".", "?", "!", "…", ")", '"', "”", "。", "？", "！", "؟", "।")
SWITCHES = ("enable_thinking", "thinking")  # names by which templates turn thinking on or off
AS_CHAT = ", as chat"  # end of the name of a set
OPENS, CLOSES = "<think>", "</think>"


@dataclass(frozen=True)
class Chat:
    """How texts become conversations.

    Attributes:
        system: the system message; None for none, or for the template's own.
        thinking: whether the model thinks before it answers; None for the template's default.
        opening: the user's request to go on with a text that is no complete sentence, with {text} in its place.

    Raises:
        ToxlocError: `opening` has no {text}.
    """

    system: str | None = None
    thinking: bool | None = None
    opening: str = "Continue this text: {text}"

    def __post_init__(self) -> None:
        if "{text}" not in self.opening:
            raise ToxlocError(f"opening={self.opening!r} has no {{text}}, the place of the text to continue.")

    def request(self, text: str) -> str:
        """Return the user's message for a prompt: a complete sentence is sent unchanged, an opening is to be continued.

        Example:
            >>> Chat().request("Who are you?"), Chat().request("You are such a")
            ('Who are you?', 'Continue this text: You are such a')
        """
        is_complete = text.rstrip().endswith(SENTENCE_ENDS)
        return text if is_complete else self.opening.replace("{text}", text)

    def asked(self, tokenizer: Any, turns: Sequence[str]) -> ChatText:
        r"""Return a conversation that the model is to continue.

        Args:
            tokenizer: the tokenizer of the model, with its chat template.
            turns: the messages of the user and, in between, of the assistant.

        Raises:
            ToxlocError: there is no chat template, or it does not accept the turns, the system message or `thinking`.

        Example:
            >>> Chat().asked(lm.tokenizer, ["Good morning."])       # doctest: +SKIP
            ChatText('<|im_start|>user\nGood morning.<|im_end|>\n<|im_start|>assistant\n', [])
        """
        return ChatText(self._rendered(tokenizer, turns, add_generation_prompt=True))

    def answered(self, tokenizer: Any, answer: str, turns: Sequence[str] = (REQUEST,)) -> ChatText:
        """Return a conversation that ends with an answer of the model. Only the answer counts.

        Raises:
            ToxlocError: as `asked`; or the template leaves the answer out, or changes it.
        """
        text = self._rendered(tokenizer, [*turns, answer])
        begin = text.rfind(answer.strip())
        if begin < 0:
            raise ToxlocError(
                f"The chat template of {tokenizer.name_or_path} changes the answer {short_repr(answer)}, so that its "
                "place in the conversation is unknown; use plain text."
            )
        return ChatText(text, [(begin, begin + len(answer.strip()))])

    def answers(self, tokenizer: Any, texts: Sequence[str]) -> list[str]:
        """Return each text as the answer to `REQUEST`; texts that are in the template already are left as they are."""
        return [text if isinstance(text, ChatText) else self.answered(tokenizer, text) for text in texts]

    def _rendered(self, tokenizer: Any, turns: Sequence[str], add_generation_prompt: bool = False) -> str:
        check_template(tokenizer)
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        options: dict[str, bool] = {}
        if self.thinking is not None:
            options = {thinking_switch(tokenizer): self.thinking}
        try:
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except Exception as error:  # a template is a program, and raises errors of many types
            hint = " It may not accept a system message; leave it out." if self.system is not None else ""
            raise ToxlocError(f"The chat template of {tokenizer.name_or_path} fails: {error}.{hint}") from error
        if self.system is not None and self.system.strip() not in text:
            raise ToxlocError(f"The chat template of {tokenizer.name_or_path} leaves out the system message.")
        return text


def as_chat_name(name: str) -> str:
    """Return the name of a set of texts in a chat template.

    Example:
        >>> as_chat_name("builtin")
        'builtin, as chat'
    """
    return name if name.endswith(AS_CHAT) else name + AS_CHAT


def check_template(tokenizer: Any) -> None:
    """Check that a tokenizer has a chat template.

    Raises:
        ToxlocError: it has none.
    """
    if tokenizer.chat_template is None:
        raise ToxlocError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; use plain text, or give a chat model."
        )


def thinking_switch(tokenizer: Any) -> str:
    """Return the name by which the chat template turns thinking on or off.

    Raises:
        ToxlocError: the template has no such switch.
    """
    template = str(tokenizer.chat_template)
    for name in SWITCHES:
        if name in template:
            return name
    raise ToxlocError(
        f"The chat template of {tokenizer.name_or_path} has no switch for thinking ({' or '.join(SWITCHES)}); leave "
        "thinking out."
    )


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token with which the chat template ends an answer; None if it is not a special token.

    Example:
        >>> end_of_turn(lm.tokenizer)       # doctest: +SKIP
        2
    """
    text = Chat().answered(tokenizer, "zebra")
    tail = text[text.spans[0][1] :]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in special), None)


def without_thinking(prompt: str, completion: str) -> tuple[str, str]:
    """Split a completion into what the model thought and what it answered.

    A completion that ends before the thinking does has an empty answer.

    Example:
        >>> without_thinking("Hi", "<think>They greet me.</think> Hello!")
        ('They greet me.', 'Hello!')
    """
    opened = prompt.rstrip().endswith(OPENS)
    before, tag, rest = completion.partition(OPENS)
    if tag and not before.strip():
        opened, completion = True, rest
    if not opened:
        return "", completion
    thought, _, answer = completion.partition(CLOSES)
    return thought.strip(), answer.strip()
