"""What the commands say: numbers in tables, and a last word after Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def stopping(word: str) -> Iterator[None]:
    """End a command that Ctrl-C stops within the block with one sentence, and the exit code that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Stopped. {word}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def interval(value: float, ci: tuple[float, float], form: str = ".1%") -> str:
    r"""Print a figure with its interval, for a rich table.

    Example:
        >>> interval(0.25, (0.2, 0.3))
        '25.0% \\[20.0, 30.0]'
    """
    low, high = (f"{end:{form}}".removesuffix("%") for end in ci)
    return rf"{value:{form}} \[{low}, {high}]"
