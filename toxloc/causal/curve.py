"""Knock-out curves: remove more and more units in the order of a score, and equally many random units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ..errors import ToxlocError
from ..localization.result import Localization
from ..localization.score_table import SCORES
from ..models.sites import BySite, Unit
from ..support.arguments import as_list, whole_number
from ..support.progress import track
from .knockout import Knockout, KnockoutTest, unit_sizes

NEAREST = 16  # units of a site with the nearest activation sizes, among which a random control is drawn


@dataclass(frozen=True)
class KnockoutCurve:
    """Knock-outs of more and more units, in the order of a score and at random.

    Attributes:
        score: name of the score.
        counts: number of units removed at each point.
        ordered: knock-outs in the order of the score, highest first.
        controls: for each point, knock-outs of random units of the same sites and of similar activation sizes.
    """

    score: str
    counts: tuple[int, ...]
    ordered: tuple[Knockout, ...]
    controls: tuple[tuple[Knockout, ...], ...]

    @property
    def score_title(self) -> str:
        """Title of the score in figures."""
        return SCORES[self.score].title if self.score in SCORES else self.score

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "score": self.score,
            "counts": list(self.counts),
            "ordered": [k.to_dict() for k in self.ordered],
            "controls": [[k.to_dict() for k in draws] for draws in self.controls],
        }


def knockout_curve(
    test: KnockoutTest,
    loc: Localization,
    score: str = "attribution",
    counts: Sequence[int] = (16, 32, 64, 128, 256),
    *,
    controls: int = 3,
    scale: float = 0.0,
    seed: int = 0,
    part: str | None = None,
) -> KnockoutCurve:
    """Remove units in the order of a score, and equally many random units matched for activation size.

    Args:
        test: the knock-out test, with its texts and the measurements of the intact model.
        loc: a localization of the same model that contains the score.
        score: name of the score.
        counts: numbers of units to remove.
        controls: number of random draws at each count.
        scale: factor of the removed units.
        seed: seed for the random draws.
        part: "mlp" for neurons, "attention" for heads; by default the localization's first part.

    Raises:
        ToxlocError: more units than there are, no units left for the controls, a score that was not computed, or a
            localization of a model of another shape.
    """
    counts = [whole_number(count, "counts", at_least=1) for count in as_list(counts, "the counts")]
    if not counts:
        raise ToxlocError("There are no counts; give at least one number of units to remove.")
    sizes = unit_sizes(test.lm, loc, part or loc.parts[0])
    rng = np.random.default_rng(seed)
    order = loc.top_units(score, max(counts), part)
    ordered, random = [], []
    for count in track(counts, f"knock-outs by {score}"):
        ordered.append(test.remove(order[:count], scale))
        random.append(tuple(test.remove(matched(order[:count], sizes, rng), scale) for _ in range(controls)))
    return KnockoutCurve(score, tuple(counts), tuple(ordered), tuple(random))


def matched(
    chosen: Sequence[Unit], sizes: BySite[Float64[np.ndarray, " n_units"]], rng: np.random.Generator
) -> list[Unit]:
    """Draw a control for each chosen unit: a different unit of its site, near in activation size. None is drawn twice.

    Example:
        >>> matched([(Site(0), 2)], BySite({Site(0): np.array([1.0, 9.0, 1.1])}), np.random.default_rng(0))
        [(Site(layer=0, part='mlp'), 0)]
    """
    taken = set(chosen)
    drawn: list[Unit] = []
    for site, unit in chosen:
        size = sizes[site]
        distance = np.abs(np.log(size + 1e-12) - np.log(size[unit] + 1e-12))
        free = [(site, int(j)) for j in np.argsort(distance, kind="stable") if (site, int(j)) not in taken]
        if not free:
            raise ToxlocError(
                f"No unit of {site.title} is left as a control for {len(chosen)} chosen units; remove fewer."
            )
        drawn.append(free[rng.integers(min(NEAREST, len(free)))])
        taken.add(drawn[-1])
    return drawn


def matched_order(
    sizes: Sequence[Float64[np.ndarray, " _n_units"]], rng: np.random.Generator
) -> Int64[np.ndarray, " _n"]:
    """Draw a random order in which each unit changes places only with units of its site and of similar activation size.

    Scores in this order are the scores of a control: at every number of chosen units, it chooses as many units of each
    site as the score, of similar sizes. Unlike `matched`, it can choose any share of the units, because a unit of the
    control can also be one that the score chose.

    Args:
        sizes: activation sizes of the units of each site.
        rng: the random generator.

    Returns:
        Indices of all units, those of the first site first.

    Example:
        >>> sorted(matched_order([np.array([1.0, 9.0]), np.array([2.0])], np.random.default_rng(0))[:2].tolist())
        [0, 1]
    """
    orders, begin = [], 0
    for size in sizes:
        order = np.arange(len(size))
        for block in np.array_split(np.argsort(size, kind="stable"), -(-len(size) // NEAREST)):
            order[block] = rng.permutation(block)
        orders.append(begin + order)
        begin += len(size)
    return np.concatenate(orders)
