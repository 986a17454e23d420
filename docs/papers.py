"""properdocs hook: turns references such as arXiv:2605.27997, on pages and in docstrings, into links."""

import re
from typing import Any

PAPER = re.compile(
    r"arXiv:(\d{4}\.\d{4,5})"
    r"(?![^<>]*>)"  # not inside a tag
    r"(?![^<]*</(?:a|code)>)"  # not inside a link or code
)


def on_page_content(html: str, **_: Any) -> str:
    """Link the arXiv references of a page."""
    return PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', html)
