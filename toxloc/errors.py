"""The exception for mistakes that the user can correct, and the length of its message."""

LONGEST = 1000  # characters of a message


class ToxlocError(ValueError):
    """A mistake that the caller can correct; the message names the value and the fix.

    Example:
        >>> len(str(ToxlocError(f"There is no model {'x' * 5000}; check the name.")))
        1000
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


def shortened(message: str) -> str:
    """Return a message of at most 1,000 characters; if it is longer, "…" replaces its middle."""
    half = LONGEST // 2
    return message if len(message) <= LONGEST else f"{message[:half]}…{message[1 - half :]}"
