"""Objects of the shapes in `toxloc.plots.protocols`, with arrays made by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass(frozen=True)
class Label:
    title: str
    unit: str = ""
    centre: float = 0.0
    neuron_title: str = ""


LABELS = {
    "activation": Label("activation contrast", "pooled sd"),
    "attribution": Label("attribution", "nats per token"),
    "gradient_norm": Label("gradient norm"),
    "gradient_calibrated": Label("gradient norm over its null", "", 1.0),
    "auroc": Label("best neuron's AUROC", "0.5 is chance", 0.5, "AUROC"),
}


@dataclass(frozen=True)
class Bands:
    low: np.ndarray
    high: np.ndarray
    null_mean: np.ndarray
    null_sd: np.ndarray
    z: np.ndarray
    p_adjusted: np.ndarray


@dataclass(frozen=True)
class Place:
    layer: int


@dataclass(frozen=True)
class Scores:
    """Scores of one part: for each score one number per site, and one per unit."""

    layers: dict[str, np.ndarray]
    units: dict[str, np.ndarray]
    known: dict[str, Bands] = field(default_factory=dict)
    places: tuple[int, ...] | None = None  # layers that have the part; None for all


@dataclass(frozen=True)
class Located:
    """A localization."""

    by_part: dict[str, Scores]
    about: dict[str, str] = field(default_factory=lambda: {"model": "m"})

    @property
    def parts(self):
        return tuple(self.by_part)

    @property
    def scores(self):
        return tuple(self.by_part[self.parts[0]].layers)

    def sites(self, part):
        own = self.by_part[part]
        return [Place(i) for i in own.places or range(len(next(iter(own.layers.values()))))]

    def layer_scores(self, score, part):
        return self.by_part[part].layers[score]

    def neuron_scores(self, score, part):
        return self.by_part[part].units[score]

    def part_uncertainty(self, score, part):
        return self.by_part[part].known.get(score)

    def score_label(self, score):
        return LABELS[score]


@pytest.fixture
def sure():
    """Uncertainty of two layers."""
    return Bands(
        low=np.array([-4.0, 0.5]),
        high=np.array([-2.0, 2.5]),
        null_mean=np.array([0.25, -0.25]),
        null_sd=np.array([0.5, 1.0]),
        z=np.array([-6.5, 1.75]),
        p_adjusted=np.array([0.002, 0.06]),
    )


@pytest.fixture
def loc(sure):
    """Two layers of 600 neurons; attribution alone has intervals."""
    rng = np.random.default_rng(0)
    return Located(
        {
            "mlp": Scores(
                {"activation": np.array([1.0, 4.0]), "attribution": np.array([-3.0, 1.5])},
                {"activation": rng.normal(size=(2, 600)), "attribution": rng.normal(size=(2, 600))},
                {"attribution": sure},
            )
        }
    )


@pytest.fixture
def mixed(loc, sure):
    """The same model with attention of 3 heads in its layers 1 and 4 alone."""
    heads = np.array([[1.0, -7.0, 9.0], [0.5, 3.0, 2.0]])
    attention = Scores(
        {"activation": np.array([2.0, 8.0]), "attribution": np.array([3.0, 5.5])},
        {"activation": heads, "attribution": heads},
        {"attribution": sure},
        places=(1, 4),
    )
    return Located(loc.by_part | {"attention": attention})
