"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

SIDE_BY_SIDE = "\u00a0·\u00a0"  # between figures that share a cell, which is not broken there


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Lay out a table.

    Args:
        head: the names of the columns.
        rows: as many cells each.
        numbers: whether all columns but the first are set to the right.

    Example:
        >>> print(table(["n", "n²"], [["2", "4"]], numbers=True))
        | n | n² |
        | --- | ---: |
        | 2 | 4 |
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])
