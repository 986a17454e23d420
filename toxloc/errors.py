"""The error type for what the user can put right."""


class ToxlocError(ValueError):
    """Something the caller can put right; the message names the value and the fix."""
