import sys
import unicodedata

import pytest
from hypothesis import given

from tests.hostile import NAMES
from toxloc.support.control_characters import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("naïve 👩‍🔬 ½ \\x1b", "naïve 👩‍🔬 ½ \\x1b"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        ("\x7f\x85\x9b", "\\x7f\\x85\\x9b"),
        ("\u202agpt\u202e\u2066\u2069", "\\u202agpt\\u202e\\u2066\\u2069"),
        ("\u2028\u2029\ud800\udfff", "\\u2028\\u2029\\ud800\\udfff"),
    ],
)
def test_control_characters_are_escapes_and_other_characters_are_unchanged(text, shown):
    assert visible(text) == shown


def test_line_breaks_can_stay():
    assert visible("a\n\tb\r\x1b", keep="\n\t") == "a\n\tb\\r\\x1b"


def test_the_categories_of_unicode_that_are_shown_as_escapes():
    """Cf, which other signs of writing systems share, counts only for overrides and isolates of the direction."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    changed = set(everything) - set(visible(everything))
    by_category = {unicodedata.category(character) for character in changed}
    assert by_category == {"Cc", "Cs", "Zl", "Zp", "Cf"}
    assert {c for c in changed if unicodedata.category(c) == "Cf"} == set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    assert len(changed) == 65 + 2048 + 2 + 9


@given(NAMES)
def test_the_result_is_printable_and_stays_the_same(name):
    shown = visible(name)
    assert visible(shown) == shown
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
