"""Remove more and more neurons in the order of a score, and as many at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..localization.result import Localization
from ..support.progress import track
from .knockout import Knockout, KnockoutTest, Neuron, size_of

NEAREST = 16  # a random control is drawn among so many neurons of the same layer and of the nearest activation size


@dataclass(frozen=True)
class KnockoutCurve:
    """Knock-outs of more and more neurons, in the order of a score and at random.

    Attributes:
        score: the score.
        counts: how many neurons were removed at each point.
        ordered: the knock-outs in the order of the score, best first.
        controls: for each point the knock-outs of random neurons of the same layers and activation sizes.
    """

    score: str
    counts: tuple[int, ...]
    ordered: tuple[Knockout, ...]
    controls: tuple[tuple[Knockout, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"score": self.score, "counts": list(self.counts), "ordered": [k.to_dict() for k in self.ordered],
                "controls": [[k.to_dict() for k in several] for several in self.controls]}


def knockout_curve(test: KnockoutTest, loc: Localization, score: str = "attribution",
                   counts: Sequence[int] = (16, 32, 64, 128, 256), *, controls: int = 3, scale: float = 0.0,
                   seed: int = 0) -> KnockoutCurve:
    """Remove neurons in the order of a score, and as many random ones matched for activation size.

    Args:
        test: texts and figures of the whole model.
        loc: a localization with that score, of the same model.
        score: its name.
        counts: numbers of neurons to remove.
        controls: random draws at each count.
        scale: what removed neurons are multiplied by.
        seed: of the random draws.

    Raises:
        ToxlocError: more neurons than there are, a score that was not computed, or another model's localization.
    """
    size = size_of(test.lm, loc)
    rng = np.random.default_rng(seed)
    order = loc.top_neurons(score, max(counts))
    ordered, random = [], []
    for count in track(list(counts), f"knock-outs by {score}"):
        ordered.append(test.remove(order[:count], scale))
        random.append(tuple(test.remove(matched(order[:count], size, rng), scale) for _ in range(controls)))
    return KnockoutCurve(score, tuple(counts), tuple(ordered), tuple(random))


def matched(chosen: Sequence[Neuron], size: Float64[np.ndarray, "n_layers d_mlp"],
            rng: np.random.Generator) -> list[Neuron]:
    """Draw for every chosen neuron another of its layer, among the nearest in activation size; none twice.

    Example:
        >>> matched([(0, 2)], np.array([[1.0, 9.0, 1.1]]), np.random.default_rng(0))
        [(0, 0)]
    """
    taken = set(chosen)
    drawn = []
    for layer, neuron in chosen:
        distance = np.abs(np.log(size[layer] + 1e-12) - np.log(size[layer, neuron] + 1e-12))
        free = [(layer, int(j)) for j in np.argsort(distance, kind="stable") if (layer, int(j)) not in taken]
        if not free:
            raise ToxlocError(f"{len(chosen)} neurons leave none in layer {layer} to compare with; remove fewer.")
        drawn.append(free[rng.integers(min(NEAREST, len(free)))])
        taken.add(drawn[-1])
    return drawn
