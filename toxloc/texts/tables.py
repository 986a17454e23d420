"""Read the rows of text files and hub datasets with the `datasets` library."""

import csv
from pathlib import Path
from typing import Any

from ..errors import ToxlocError

Row = dict[str, Any]
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    # Tab-separated corpora do not quote fields, and have unescaped quotes inside their texts.
    ".tsv": ("csv", {"sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}


def read_rows(source: str, split: str = "train") -> list[Row]:
    """Read every row of a CSV, TSV, JSON Lines, Parquet or text file, or of a hub dataset.

    Args:
        source: path of a file, or id of a hub dataset (`id:config` if it has several configurations).
        split: split of a hub dataset to read.

    Returns:
        One dictionary per row, from column to value.

    Raises:
        ToxlocError: the file or dataset does not exist, has an unknown type, is empty or cannot be read.

    Example:
        >>> read_rows("texts.csv")        # doctest: +SKIP
        [{'text': 'Good morning', 'label': 0}, ...]
    """
    import datasets

    path = Path(source).expanduser()
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if path.is_file():
            rows = _read_file(datasets, path)
        elif path.suffix in READERS or source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ToxlocError(f"There is no file {source}; check the path.")
        else:
            rows = _read_hub(datasets, source, split)
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if not rows:
        raise ToxlocError(f"{source} has no rows; check that it was written to the end, or give another file.")
    return rows


def _read_file(datasets: Any, path: Path) -> list[Row]:
    if path.suffix not in READERS:
        raise ToxlocError(
            f"{path.name}: files of type {path.suffix or '(none)'} are not supported; use one of {', '.join(READERS)}."
        )
    if path.stat().st_size == 0:
        raise ToxlocError(f"{path} is empty; check that it was written to the end, or give another file.")
    builder, options = READERS[path.suffix]
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
        return list(table)
    except Exception as error:  # datasets wraps the errors of its readers in several types
        if "corresponds to no data" in str(error):
            return []
        cause = error.__cause__ or error
        raise ToxlocError(f"{path} cannot be read as {builder}: {str(cause).splitlines()[0]}") from error


def _read_hub(datasets: Any, source: str, split: str) -> list[Row]:
    name, _, config = source.partition(":")
    try:
        return list(datasets.load_dataset(name, config or None, split=split))
    except Exception as error:  # datasets raises several types here too
        raise ToxlocError(
            f"{source!r} is neither 'builtin' nor a file, and it could not be loaded from the dataset hub "
            f"({type(error).__name__}): it does not exist there, or the hub could not be reached. Download the dataset "
            "on a connected machine and give the file instead."
        ) from error
