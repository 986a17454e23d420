"""Markdown that shows a text literally, whatever characters it contains."""

import re

from .control_characters import visible

# Punctuation that begins or ends markup inside a line. On GitHub, "://" and "www." begin links.
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)


def literal(text: str) -> str:
    r"""Return Markdown that shows the text literally inside a line or a cell of a table; not at the start of a line.

    Control characters, which include line breaks, are shown as escapes.

    Example:
        >>> print(literal("<b>gpt_neo|x"))
        \<b\>gpt\_neo\|x
    """
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def code_span(text: str) -> str:
    """Return Markdown that shows the text as code, between more backticks than the text has in a row.

    Example:
        >>> code_span("<s>"), code_span("a`b")
        ('`<s>`', '``a`b``')
    """
    text = visible(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text[:1] in "` " or text[-1:] in "` " else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"
