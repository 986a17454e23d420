import codecs
import json

import pytest

from toxloc import ToxlocError
from toxloc.texts.records import read_records

A, B = {"text": "a"}, {"text": "b"}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"text": "a"}\n{"text": "b"}', [A, B]),
        ('{"text": "a"}\r\n\r\n  \n{"text": "b"}\r\n', [A, B]),
        (codecs.BOM_UTF8 + b'{"text": "a"}\n', [A]),
        ('{"text": "a"}\n{"label": 1}\n', [{"text": "a", "label": None}, {"text": None, "label": 1}]),
        ('{"label": 1, "text": "a"}\n{"text": "b", "label": 0}\n', [A | {"label": 1}, B | {"label": 0}]),
        ('{"text": "a"}\n{"text": 1}\n{"text": [1, {}]}', [A, {"text": 1}, {"text": [1, {}]}]),
        ('{"text": "2020-01-01"}', [{"text": "2020-01-01"}]),
        ("{}\n{}\n", [{}, {}]),
        ('{"text": "a\\u0000b \\ud83d\\ude00"}', [{"text": "a\0b 😀"}]),
        ('{"text": "a\\\\ud800"}', [{"text": "a\\ud800"}]),  # a backslash, not an escape
        ('{"text": "a\u2028b\u2029c\u0085d\x7f"}\n{"text": "b"}\n', [{"text": "a\u2028b\u2029c\u0085d\x7f"}, B]),
        ('[{"text": "a"},\n {"text": "b"}]', [A, B]),
        (codecs.BOM_UTF8 + b'\n ["a", "b"]', [A, B]),
        ("[]", []),
        ("\n \n", []),
        (json.dumps(A | {"x": {"y": [1]}}, indent=2), [A | {"x": {"y": [1]}}]),
        (f"\n{json.dumps(A, indent=1)}\n\n{json.dumps(B, indent=4)}\n", [A, B]),
    ],
)
def test_every_layout_gives_the_rows_that_it_holds(tmp_path, content, rows):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_records(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null\nnull\n", "line 1 is null, not an object"),  # pyarrow ends the process at these lines
        ('{"text": "a"}\nnull\n', "line 2 is null"),
        ("1\n2\n", "line 1 is 1, not an object"),
        ('\n"a"\n', 'line 2 is "a", not an object'),
        ('{"text": "a"}\n[1, 2]\n', r"line 2 is \[1, 2\], not an object"),
        ("[1, 2]\n[3]\n", r"line 2 is not valid JSON \(Extra data, column 1\)"),
        ("[[1], [2]]", r"item number 0 of its list is \[1\], not an object"),
        ('["a", {}]', 'item number 0 of its list is "a", not an object'),
        ('{"text": ' + "[" * 10_000 + "]" * 10_000 + "}", r"line 1 is not valid JSON \(it is nested too deeply\)"),
        ("[" * 10_000, r"line 1 is not valid JSON \(it is nested too deeply\)"),
        ('{"text": "a"}\n{"label": NaN}\n', r"line 2 is not valid JSON \(it has the number NaN\)"),
        ('{"label": 1e999}', r"line 1 is not valid JSON \(it has the number 1e999\)"),
        ('{"label": ' + "9" * 5000 + "}", r"line 1 is not valid JSON \(Exceeds the limit"),
        ('{"text": "a"}\n{"text": "b', r"line 2 is not valid JSON \(Unterminated string"),
        ('{\n "text": "a"\n}\n{\n "text": ,\n}\n', r"line 5 is not valid JSON \(Expecting value, column 10\)"),
        ('{\n "text": "a"\n', r"line 3 is not valid JSON"),
        ('{"text": "a"} {"text": "b"}', r"line 1 is not valid JSON \(Extra data, column 15\)"),
        ('{"text": "a"}\n'.encode("utf-16"), "line 1 is not in UTF-8"),
        (b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2 is not in UTF-8"),
        (b'[{"text": "a"},\n\n{"text": "\xe9"}]', "line 3 is not in UTF-8"),
        (b'{"text": "a\0b"}', r"line 1 is not valid JSON \(Invalid control character"),
        ('{"text": "a"}\n{"text": "x \\uD800"}\n', r"line 2 has the lone surrogate '\\ud800'"),
        ('{"\\udc00": "a"}\n', r"line 1 has the lone surrogate '\\udc00'"),
    ],
)
def test_content_that_is_no_table_ends_in_a_sentence_with_the_line(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ToxlocError, match=f"t.jsonl cannot be read as json: {message}") as caught:
        read_records(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
