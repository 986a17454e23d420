"""Knock-out curves: remove more and more units in the order of a score, and equally many random units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..localization.result import Localization
from ..localization.score_table import SCORES
from ..models.sites import BySite, Unit
from ..support.arguments import as_list, whole_number
from ..support.progress import track
from .knockout import Knockout, KnockoutTest, unit_sizes

NEAREST = 16  # a random control is drawn from this many units of the same site with the nearest activation size


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
