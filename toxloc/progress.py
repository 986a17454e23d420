"""Progress bars that appear only while someone asked to see them.

Library code wraps its loops in :func:`track`; the command line (or a notebook) opens :func:`shown` around a
call. Without `shown`, `track` passes the items through and prints nothing.
"""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
_display: ContextVar[Progress | None] = ContextVar("toxloc_progress", default=None)


@contextmanager
def shown(console: Console | None = None) -> Iterator[None]:
    """Show the bars of every `track` inside this context.

    >>> with shown():
    ...     for _ in track([1, 2, 3], "counting"): pass
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as display:
        token = _display.set(display)
        try:
            yield
        finally:
            _display.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items unchanged, advancing a bar if one is shown."""
    display = _display.get()
    if display is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    task = display.add_task(description, total=total)
    for item in items:
        yield item
        display.advance(task)
    display.update(task, total=display.tasks[task].completed)
