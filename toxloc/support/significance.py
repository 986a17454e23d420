"""The level of significance, and p-values and effects as text."""

ALPHA = 0.05


def p_text(p: float) -> str:
    """Return a p-value as text, without a leading zero.

    Example:
        >>> p_text(0.312), p_text(0.0004), p_text(1.0)
        ('.31', '< .001', '1')
    """
    return "< .001" if p < 0.001 else f"{p:.2g}".removeprefix("0")


def signed_text(value: float) -> str:
    """Return an effect with its sign and three decimals as text, without a leading zero.

    Example:
        >>> signed_text(0.1761), signed_text(-0.02), signed_text(3.577)
        ('+.176', '−.020', '+3.577')
    """
    return f"{value:+.3f}".replace("+0.", "+.").replace("-0.", "-.").replace("-", "−")
