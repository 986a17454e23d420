"""Output of the commands: consoles, error messages, figures with intervals, and the message after Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import shortened
from ..support.control_characters import visible


class _Terminal(Console):
    """A console that shows the control characters of strings as escapes, also in tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def terminal(stderr: bool = False) -> Console:
    """Return a console that prints brackets literally and control characters as escapes, because names contain them."""
    return _Terminal(stderr=stderr, markup=False, emoji=False, highlight=False)


def alarm(what: str, rest: str) -> Text:
    """Return a sentence of bounded length that begins with `what` in bold red; control characters are escapes."""
    return Text.assemble((what, "bold red"), visible(shortened(rest)))


@contextmanager
def stopping(advice: str) -> Iterator[None]:
    """On Ctrl-C in the block, print "Stopped." and `advice`, and exit with code 130, as shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        terminal(stderr=True).print(f"Stopped. {advice}", soft_wrap=True)
        raise typer.Exit(130) from None


def interval(value: float, ci: tuple[float, float], form: str = ".1%") -> str:
    """Return a figure with its interval as text, for a table.

    Example:
        >>> interval(0.25, (0.2, 0.3))
        '25.0% [20.0, 30.0]'
    """
    low, high = (f"{end:{form}}".removesuffix("%") for end in ci)
    return f"{value:{form}} [{low}, {high}]"
