"""The exception for mistakes that the user can correct."""


class ToxlocError(ValueError):
    """A mistake that the caller can correct; the message names the value and the fix."""
