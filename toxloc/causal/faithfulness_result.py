"""The result of `faithfulness`: curves over the share of units, and the areas CPR and CMD."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..localization.score_table import SCORES
from ..support.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

Order = Literal["kept", "kept_absolute", "removed"]
# Name of the area of each order.
MEASURES: dict[Order, str] = {"kept": "CPR", "kept_absolute": "CMD", "removed": "area"}


@dataclass(frozen=True)
class Area:
    """The area of a curve over the share of units, and the same area of its random controls.

    Attributes:
        value: the area.
        ci: 95% bootstrap interval of `value` over pairs.
        controls: the area of each control.
        above: `value` minus the mean of `controls`; NaN without controls.
        above_ci: 95% bootstrap interval of `above` over pairs, for these controls.
    """

    value: float
    ci: Interval
    controls: tuple[float, ...]
    above: float
    above_ci: Interval


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness at each share of units, for one score and one order.

    Attributes:
        score: name of the score.
        order: "kept", if the units with the highest scores are kept; "kept_absolute", if those with the largest
            absolute scores are kept; "removed", if those with the highest scores are removed and all others are kept.
        difference: mean over pairs of D at each share.
        faithfulness: f at each share.
        low: lower end of the 95% bootstrap interval of f over pairs.
        high: upper end of the interval.
        controls: f of the random controls.
        area: the area of the curve: CPR for "kept", CMD for "kept_absolute", and the area under f for "removed".
    """

    score: str
    order: Order
    difference: Float64[np.ndarray, " n_shares"]
    faithfulness: Float64[np.ndarray, " n_shares"]
    low: Float64[np.ndarray, " n_shares"]
    high: Float64[np.ndarray, " n_shares"]
    controls: Float64[np.ndarray, "n_controls n_shares"]
    area: Area

    @property
    def score_title(self) -> str:
        """Title of the score in figures."""
        return SCORES[self.score].title if self.score in SCORES else self.score


@dataclass(frozen=True)
class Faithfulness:
    """Curves of faithfulness over the share of units that are kept or removed, for several scores.

    Attributes:
        curves: one curve per score and order.
        shares: shares of the units.
        counts: number of units at each share, rounded down.
        n_units: number of units (or sites) of the localized parts.
        level: "unit" or "site".
        by: what replaces the units that are not kept.
        over: what D compares: "first" or "ending".
        n_pairs: number of pairs that D is averaged over.
        n_left_out: number of other pairs.
        intact: m(M), the mean over pairs of D in the intact model.
        empty: m(∅), the mean over pairs of D with every unit replaced.
        gap_ci: 95% bootstrap interval of `intact - empty` over pairs.
        n_forward_passes: number of passes over the pairs.
    """

    curves: tuple[FaithfulnessCurve, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]
    n_units: int
    level: str
    by: str
    over: str
    n_pairs: int
    n_left_out: int
    intact: float
    empty: float
    gap_ci: Interval
    n_forward_passes: int

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(dict.fromkeys(curve.score for curve in self.curves))

    @property
    def cpr(self) -> dict[str, Area]:
        """CPR of each score: the area under f, with the units of the highest scores kept. Larger is better."""
        return self._areas("kept")

    @property
    def cmd(self) -> dict[str, Area]:
        """CMD of each score: the area between f and 1, with the units of the largest absolute scores kept.

        Smaller is better.
        """
        return self._areas("kept_absolute")

    def curve(self, score: str, order: Order = "kept") -> FaithfulnessCurve:
        """Return the curve of a score. Raises ToxlocError if there is no such curve."""
        for curve in self.curves:
            if (curve.score, curve.order) == (score, order):
                return curve
        raise ToxlocError(
            f"There is no curve of {score!r} in the order {order!r}; the scores are {', '.join(self.scores)}, and the "
            f"orders {', '.join(MEASURES)}."
        )

    def table(self) -> "pd.DataFrame":
        """Return one row per score, order and share: units, D, f with its interval, and the mean f of the controls.

        Example:
            >>> result.table().query("order == 'kept' and share == 0.1")     # doctest: +SKIP
        """
        import pandas as pd

        frames = [
            pd.DataFrame(
                {
                    "score": curve.score,
                    "order": curve.order,
                    "share": self.shares,
                    "units": self.counts,
                    "difference": curve.difference,
                    "faithfulness": curve.faithfulness,
                    "low": curve.low,
                    "high": curve.high,
                    "controls": curve.controls.mean(0) if len(curve.controls) else np.nan,
                }
            )
            for curve in self.curves
        ]
        return pd.concat(frames, ignore_index=True)

    def areas(self) -> "pd.DataFrame":
        """Return one row per score and order: the area, the mean area of the controls, and their difference.

        Example:
            >>> result.areas().query("measure == 'CPR'").nlargest(1, "above_controls")     # doctest: +SKIP
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "score": curve.score,
                "order": curve.order,
                "measure": MEASURES[curve.order],
                "value": curve.area.value,
                "low": curve.area.ci[0],
                "high": curve.area.ci[1],
                "controls": curve.area.value - curve.area.above,
                "above_controls": curve.area.above,
                "above_low": curve.area.above_ci[0],
                "above_high": curve.area.above_ci[1],
            }
            for curve in self.curves
        )

    def _areas(self, order: Order) -> dict[str, Area]:
        return {curve.score: curve.area for curve in self.curves if curve.order == order}
