"""Read the rows of text files and hub datasets: JSON line by line, and the rest with the `datasets` library."""

import csv
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..support.control_characters import visible
from .records import Row, read_records

JSON = "json"
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Without index_col, pandas takes the first column as an index if the rows have more values than the header.
    ".csv": ("csv", {"index_col": False}),
    # Tab-separated corpora do not quote fields, and have unescaped quotes inside their texts.
    ".tsv": ("csv", {"index_col": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": (JSON, {}),
    ".json": (JSON, {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {"encoding": "utf-8-sig"}),  # with or without a byte order mark
}


def read_rows(source: str | PathLike[str], split: str = "train") -> list[Row]:
    """Read every row of a CSV, TSV, JSON Lines, Parquet or text file, or of a hub dataset.

    Args:
        source: path of a file, or id of a hub dataset (`id:config` if it has several configurations).
        split: split of a hub dataset to read.

    Returns:
        One dictionary per row, from column to value; a missing value is None.

    Raises:
        ToxlocError: the file or dataset does not exist, has an unknown type, is empty or cannot be read.

    Example:
        >>> read_rows("texts.csv")        # doctest: +SKIP
        [{'text': 'Good morning', 'label': 0}, ...]
    """
    if not isinstance(source, str | PathLike):
        raise ToxlocError(f"source={source!r}: give the name of one file or hub dataset.")
    source = os.fspath(source)
    # os.path, because the methods of Path raise errors for names that no file can have and for unknown users.
    path, name = os.path.expanduser(source), visible(source)
    if os.path.isfile(path):
        rows = _read_file(Path(path))
    elif Path(path).suffix in READERS or source.startswith((".", "/", "~")) or source.count("/") > 1:
        if os.path.isdir(path):
            raise ToxlocError(f"{name} is a folder; give a file.")
        raise ToxlocError(f"There is no file {name}; check the path.")
    else:
        rows = _read_hub(source, split)
    if not rows or not rows[0]:
        raise ToxlocError(f"{name} has no rows; check that it was written to the end, or give another file.")
    return rows


def _read_file(path: Path) -> list[Row]:
    name = visible(str(path))
    if path.suffix not in READERS:
        raise ToxlocError(
            f"{visible(path.name)}: files of type {path.suffix or '(none)'} are not supported; use one of "
            f"{', '.join(READERS)}."
        )
    builder, options = READERS[path.suffix]
    try:
        if path.stat().st_size == 0:
            raise ToxlocError(f"{name} is empty; check that it was written to the end, or give another file.")
        return read_records(path) if builder == JSON else _loaded(builder, data_files=escape(str(path)), **options)
    except ToxlocError:
        raise
    except Exception as error:  # datasets wraps the errors of its readers in several types
        if "corresponds to no data" in str(error):
            return []
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, UnicodeDecodeError):
            reason = "it is not in UTF-8; save it as UTF-8."
        elif isinstance(cause, Warning):
            reason = "its rows have more values than its header has columns; quote texts that contain the separator."
        raise ToxlocError(f"{name} cannot be read as {builder}: {reason}") from error


def _read_hub(source: str, split: str) -> list[Row]:
    name, _, config = source.partition(":")
    try:
        return _loaded(name, config or None, split=split)
    except Exception as error:  # datasets raises several types here too
        raise ToxlocError(
            f"{source!r} is neither 'builtin' nor a file, and it could not be loaded from the dataset hub "
            f"({type(error).__name__}): it does not exist there, or the hub could not be reached. Download the dataset "
            "on a connected machine and give the file instead."
        ) from error


def _loaded(name: str, config: str | None = None, *, split: str = "train", **options: Any) -> list[Row]:
    """Load a split of a dataset with the `datasets` library, without its progress bars and messages."""
    import datasets
    from pandas.errors import ParserWarning

    with _quiet(datasets), warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # pandas warns if it leaves values out
        return list(datasets.load_dataset(name, config, split=split, **options))


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors that it raises too
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
