"""Formulas as MathML, which browsers draw by themselves: pages need no script from elsewhere."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

LEFT_BY_ARITHMATEX = (
    re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S),
    re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S),
)
IN_NOTEBOOKS = re.compile(r"\$\$(.+?)\$\$", re.S), re.compile(r"\$([^$\n]+?)\$")
CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<script.*?</script>)", re.S)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replace what would be left for a script."""
    block, inline = IN_NOTEBOOKS if page.file.src_uri.endswith(".ipynb") else LEFT_BY_ARITHMATEX
    parts = CODE.split(html)
    for i in range(0, len(parts), 2):  # every other part is code
        parts[i] = block.sub(lambda found: _mathml(found[1], "block"), parts[i])
        parts[i] = inline.sub(lambda found: _mathml(found[1], "inline"), parts[i])
    return "".join(parts)


def _mathml(latex: str, display: str) -> str:
    latex = unescape(latex).replace(r"\!", "").replace(r"\big", "")
    for side in ("l", "r"):
        latex = re.sub(rf"(\\left|\\right)?\\{side}Vert", r"\\left\\Vert" if side == "l" else r"\\right\\Vert", latex)
    return convert(latex.strip(), display=display)
