"""What the commands say: sentences, numbers in tables, and a last word after Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text


def terminal(stderr: bool = False) -> Console:
    """Return a console that prints words as they are: names and messages may hold brackets, which are not markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def alarm(what: str, rest: str) -> Text:
    """Return a sentence whose beginning stands out."""
    return Text.assemble((what, "bold red"), rest)


@contextmanager
def stopping(word: str) -> Iterator[None]:
    """End a command that Ctrl-C stops within the block with one sentence, and the exit code that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        terminal(stderr=True).print(f"Stopped. {word}", soft_wrap=True)
        raise typer.Exit(130) from None


def interval(value: float, ci: tuple[float, float], form: str = ".1%") -> str:
    """Print a figure with its interval, for a table.

    Example:
        >>> interval(0.25, (0.2, 0.3))
        '25.0% [20.0, 30.0]'
    """
    low, high = (f"{end:{form}}".removesuffix("%") for end in ci)
    return f"{value:{form}} [{low}, {high}]"
