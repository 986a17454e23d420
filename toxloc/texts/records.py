"""Records: the rows of a JSON Lines file, or of a JSON file that holds a list of objects."""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..support.control_characters import visible
from ..support.files import parse_json

Row = dict[str, Any]


def read_records(path: Path) -> list[Row]:
    r"""Read a JSON file in UTF-8: objects, each on its line or indented, or a list of objects or of texts.

    pyarrow is not used: its reader of JSON ends the process at a line `null`. Only a line feed ends a line, so strings
    may contain U+2028 and other separators.

    Returns:
        One dictionary per object. A column that an object lacks is None. The column of a list of texts is "text".

    Raises:
        ToxlocError: the file has another form, is not valid JSON or not UTF-8, is nested too deeply, or has a number
            that is infinite, NaN or too long, or a string with a lone surrogate; the message gives the line.

    Example:
        >>> read_records(Path("texts.jsonl"))        # doctest: +SKIP
        [{'text': 'Good morning', 'label': 0}, ...]
    """
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for row in _records(path):
        if not row.keys() <= columns.keys():
            columns |= dict.fromkeys(row)
        rows.append(row)
    return [row if row.keys() == columns.keys() else {name: row.get(name) for name in columns} for row in rows]


def _records(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(start)
        is_list = next((line for line in file if line.strip()), b"").lstrip().startswith(b"[")
        file.seek(start)
        if is_list:
            items = _parsed(path, file.read(), 1)
            is_of_texts = all(isinstance(item, str) for item in items)
            for i, item in enumerate(items):
                yield {"text": item} if is_of_texts else _object(path, f"item number {i} of its list", item)
        else:
            for number, data in _values(file):
                yield _object(path, f"line {number}", _parsed(path, data, number))


def _values(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each value with the number of its first line: a line, or an indented object from a line { to a line }."""
    value: list[bytes] = []
    for number, line in enumerate(lines, 1):
        if value or line.strip():
            value.append(line)
            if value[0].strip() != b"{" or line.rstrip() == b"}":
                yield number - len(value) + 1, b"".join(value)
                value = []
    if value:
        yield number - len(value) + 1, b"".join(value)


def _object(path: Path, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise _refused(path, f'{place} is {json.dumps(value)[:40]}, not an object such as {{"text": "Good morning"}}')
    return value


def _parsed(path: Path, data: bytes, line: int) -> Any:
    """Parse a value that begins in a line of a file."""
    try:
        text = data.decode()
        value = parse_json(text)
        if "\\ud" in text.lower():  # possibly a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _refused(
            path, f"line {line + data.count(10, 0, error.start)} is not in UTF-8; save it as UTF-8"
        ) from None
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise _refused(path, f"line {line} has the lone surrogate {surrogate!r}, which is no character") from None
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise _refused(path, f"line {line} is not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise _refused(path, f"line {line} is not valid JSON ({reason})") from None
    return value


def _refused(path: Path, problem: str) -> ToxlocError:
    return ToxlocError(f"{visible(str(path))} cannot be read as json: {problem}.")
