"""Control characters in text for display."""

import re

# C0 and C1 controls, line and paragraph separators, overrides and isolates of the writing direction, and surrogates,
# which cannot be encoded. Terminals execute some of them, and others change the order or the lines of the text around.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with control characters as escapes, so that a terminal or a page shows them.

    Control characters are those of Unicode's category Cc, line and paragraph separators, characters that override or
    isolate the writing direction, and single surrogates.

    Args:
        text: a name, a message, or text of a model or a file.
        keep: control characters that stay, such as line breaks.

    Example:
        >>> print(visible("red\x1b[31m\nline"))
        red\x1b[31m\nline
    """
    return _CONTROL.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )
