"""Confirmation of a headline: remove the sites that it names, on texts that no score has seen."""

from ..localization.headline import Headline
from ..localization.result import Localization
from ..support.progress import track
from .knockout import KnockoutTest, unit_sizes


def confirm(test: KnockoutTest, loc: Localization, score: str | None = None) -> Headline:
    """Remove every site whose score is above chance, one by one, and return the headline with these removals.

    Args:
        test: the knock-out test, with texts that are held out from `loc`.
        loc: a localization of the same model.
        score: see `Localization.headline`.

    Raises:
        ToxlocError: the localization is of a model of another shape, or lacks the score.

    Example:
        >>> fit, held_out = pairs.split(0.8)                                     # doctest: +SKIP
        >>> confirm(KnockoutTest(lm, held_out), localize(lm, fit)).stands_out    # doctest: +SKIP
        False
    """
    unit_sizes(test.lm, loc)
    headline = loc.headline(score)
    return loc.headline(score, [test.remove([site]) for site in track(headline.unconfirmed, "confirmation")])
