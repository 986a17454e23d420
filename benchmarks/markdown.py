"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

SIDE_BY_SIDE = "\u00a0·\u00a0"  # separates values in the same cell, without a line break


def p_value(p: float) -> str:
    """Return a p-value with three decimals, without a leading zero.

    Example:
        >>> p_value(0.0123), p_value(0.0004), p_value(1.0)
        ('.012', '<.001', '1.000')
    """
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def show(head: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    """Print a table on the terminal."""
    shown = Table(*head, title=title)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False, labels: int = 1) -> str:
    """Return a table in Markdown.

    Args:
        head: names of the columns.
        rows: cells of each row, one cell per column.
        numbers: whether all columns except the first `labels` are right-aligned.
        labels: number of columns that hold no numbers.

    Example:
        >>> print(table(["n", "n²"], [["2", "4"]], numbers=True))
        | n | n² |
        | --- | ---: |
        | 2 | 4 |
    """
    rule = ["---"] * labels + ["---:" if numbers else "---"] * (len(head) - labels)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])
