"""The one error type that is the user's to mend."""




class ToxlocError(ValueError):
    """Something the caller can put right; the message names the value and the fix."""
