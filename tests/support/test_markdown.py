import pytest
from hypothesis import example, given
from markdown_it import MarkdownIt

from tests.hostile import HOSTILE, NAMES
from toxloc.support.control_characters import visible
from toxloc.support.markdown import code_span, literal

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def leaves(markdown):
    """Return the type and the content of everything inside the lines of a text."""
    return [
        (leaf.type, leaf.content)
        for token in READER.parse(markdown)
        if token.type == "inline"
        for leaf in token.children
    ]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("random-gpt2 (0.5), v1.0: 50%", "random-gpt2 (0.5), v1.0: 50%"),
        ("gpt_neo*", "gpt\\_neo\\*"),
        ("<b>&amp;|", "\\<b\\>\\&amp;\\|"),
        ("a\nb\\", "a\\\\nb\\\\"),
        ("https://x www.x", "https:\\//x www\\.x"),
    ],
)
def test_only_markup_is_escaped(text, markdown):
    assert literal(text) == markdown


@given(NAMES)
@example(HOSTILE)
def test_a_reader_of_markdown_shows_the_text_itself(name):
    shown = f"x{visible(name)}x"
    assert leaves(f"A x{literal(name)}x b.") == [("text", f"A {shown} b.")]
    assert leaves(f"# A x{literal(name)}x b") == [("text", f"A {shown} b")]
    assert leaves(f"| a | b |\n| --- | --- |\n| x{literal(name)}x | 1 |")[2:] == [("text", shown), ("text", "1")]


@given(NAMES)
@example("`a``")
@example(" ")
@example(HOSTILE)
def test_code_is_shown_literally(name):
    (before, code, after) = leaves(f"Begin with {code_span(name)}, always.")
    assert (before, after) == (("text", "Begin with "), ("text", ", always."))
    assert code[0] == "code_inline"
    assert code[1].strip(" ") == visible(name).strip(" ")
