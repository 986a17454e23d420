"""Papers: what pages and docstrings write as arXiv:2605.27997 becomes a link."""

import re
from typing import Any

PAPER = re.compile(
    r"arXiv:(\d{4}\.\d{4,5})"
    r"(?![^<>]*>)"  # not within a tag
    r"(?![^<]*</(?:a|code)>)"
)  # nor in a link or in code


def on_page_content(html: str, **_: Any) -> str:
    """Link the papers of a page."""
    return PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', html)
