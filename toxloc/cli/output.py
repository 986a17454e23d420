"""Numbers as the tables of the commands print them."""


def interval(value: float, ci: tuple[float, float], form: str = ".1%") -> str:
    r"""Print a figure with its interval, for a rich table.

    Example:
        >>> interval(0.25, (0.2, 0.3))
        '25.0% \\[20.0, 30.0]'
    """
    low, high = (f"{end:{form}}".removesuffix("%") for end in ci)
    return rf"{value:{form}} \[{low}, {high}]"
