"""Progress messages, which are shown only on request.

`step` announces a step of the pipeline, `track` reports the items of a loop, and `note` prints a sentence for the user.
They print nothing outside a `shown` block, which the command line or a notebook opens around its calls.
"""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .control_characters import visible

T = TypeVar("T")
_display: ContextVar[Progress | None] = ContextVar("toxloc_progress", default=None)


@contextmanager
def shown(console: Console | None = None) -> Iterator[None]:
    """Show the steps, bars and notes of the block.

    Args:
        console: console to print to; by default the terminal.

    Example:
        >>> with shown():                                           # doctest: +SKIP
        ...     for _ in track([1, 2, 3], "counting"):
        ...         pass
    """
    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as display:
        token = _display.set(display)
        try:
            yield
        finally:
            _display.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show a line with the name and the duration of the block; the line stays after the block."""
    display = _display.get()
    if display is None:
        yield
        return
    if not display.console.is_terminal:  # a log file gets bars only at the end, so print the name at the start
        display.console.print(visible(name), markup=False, highlight=False)
    task = display.add_task(f"[bold]{escape(visible(name))}", total=1)
    yield
    display.update(task, completed=1)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items unchanged, and show a progress bar that disappears at the end.

    Args:
        items: the items of the loop.
        description: label of the progress bar.
        total: number of items, if `items` has no length.
    """
    display = _display.get()
    if display is None:
        yield from items
        return
    task = display.add_task(
        f"  {escape(visible(description))}", total=len(items) if isinstance(items, Sized) else total
    )
    try:
        for item in items:
            yield item
            display.advance(task)
    finally:
        display.remove_task(task)


def note(sentence: str) -> None:
    """Print a sentence above the steps and bars."""
    display = _display.get()
    if display is not None:
        display.console.print(visible(sentence), markup=False, highlight=False, soft_wrap=True)
