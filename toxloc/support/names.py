"""Short names for tables and figures."""


def short_name(source: str) -> str:
    """Return the last part of a path or hub id, which is short enough for tables and figures.

    Example:
        >>> short_name("models/planted/layer3")
        'layer3'
    """
    return source.rstrip("/").rsplit("/", 1)[-1]
