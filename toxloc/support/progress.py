"""Progress that appears only while someone asked to see it.

The pipeline announces its steps with :func:`step`, loops pass their items through :func:`track`, what a user should
know is a :func:`note`; the command line (or a notebook) opens :func:`shown` around a call. Without `shown`, nothing is
printed.
"""

import logging
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
_display: ContextVar[Progress | None] = ContextVar("toxloc_progress", default=None)


@contextmanager
def shown(console: Console | None = None) -> Iterator[None]:
    """Show the steps and bars of everything inside this context.

    >>> with shown():
    ...     for _ in track([1, 2, 3], "counting"): pass
    """
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeElapsedColumn())
    with Progress(*columns, console=console) as display:
        token = _display.set(display)
        try:
            yield
        finally:
            _display.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show a line with its time for the duration of the block; it stays when the block is done."""
    display = _display.get()
    if display is None:
        yield
        return
    if not display.console.is_terminal:  # a log file sees no bars until the end, so it gets a line at the start
        display.console.print(name, markup=False, highlight=False)
    task = display.add_task(f"[bold]{escape(name)}", total=1)
    yield
    display.update(task, completed=1)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items unchanged, advancing a bar, if one is shown, that goes when they are at an end.

    `total` is how many there are, where the items do not know it.
    """
    display = _display.get()
    if display is None:
        yield from items
        return
    task = display.add_task(f"  {escape(description)}", total=len(items) if isinstance(items, Sized) else total)
    try:
        for item in items:
            yield item
            display.advance(task)
    finally:
        display.remove_task(task)


def note(sentence: str) -> None:
    """Print a sentence above the steps."""
    display = _display.get()
    if display is not None:
        display.console.print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notices and bars of the libraries that load models off the user's screen; errors come through."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
