"""properdocs hook: turns formulas into MathML, which browsers draw themselves, so that pages load no script."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

MARKED_BY_ARITHMATEX = (
    re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S),
    re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S),
)
IN_NOTEBOOKS = re.compile(r"\$\$(.+?)\$\$", re.S), re.compile(r"\$([^$\n]+?)\$")
CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<script.*?</script>)", re.S)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replace the formulas of a page by MathML."""
    block, inline = IN_NOTEBOOKS if page.file.src_uri.endswith(".ipynb") else MARKED_BY_ARITHMATEX
    parts = CODE.split(html)
    for i in range(0, len(parts), 2):  # the parts with odd indices are code
        parts[i] = block.sub(lambda match: _mathml(match[1], "block"), parts[i])
        parts[i] = inline.sub(lambda match: _mathml(match[1], "inline"), parts[i])
    return "".join(parts)


def _mathml(latex: str, display: str) -> str:
    latex = unescape(latex).replace(r"\!", "").replace(r"\big", "")
    for side in ("l", "r"):
        latex = re.sub(rf"(\\left|\\right)?\\{side}Vert", r"\\left\\Vert" if side == "l" else r"\\right\\Vert", latex)
    return convert(latex.strip(), display=display)
