"""Objects that fulfil the protocols of `toxloc.plots.protocols`, with small arrays."""

from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass(frozen=True)
class Label:
    title: str
    unit: str = ""
    centre: float = 0.0
    neuron_title: str = ""
    question: str = "does it carry toxicity?"


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
class StubSite:
    layer: int
    expert: int | None = None
    part: str = "mlp"

    @property
    def title(self):
        name = "" if self.part == "mlp" else f", {self.part}"
        return f"layer {self.layer}{name}" + ("" if self.expert is None else f" {self.expert}")


@dataclass(frozen=True)
class Scores:
    """Scores of one part: for each score a value per site (`layers`) and a value per unit (`units`)."""

    layers: dict[str, np.ndarray]
    units: dict[str, np.ndarray]
    uncertainties: dict[str, Bands] = field(default_factory=dict)
    site_layers: tuple[int, ...] | None = None  # layers that have the part; None for all layers


@dataclass(frozen=True)
class Located:
    """Localization with given scores."""

    by_part: dict[str, Scores]
    about: dict[str, str] = field(default_factory=lambda: {"model": "m"})

    @property
    def parts(self):
        return tuple(self.by_part)

    @property
    def scores(self):
        return tuple(self.by_part[self.parts[0]].layers)

    def sites(self, part):
        scores = self.by_part[part]
        layers = scores.site_layers or range(len(next(iter(scores.layers.values()))))
        return [StubSite(layer, part=part) for layer in layers]

    def layer_scores(self, score, part):
        return self.by_part[part].layers[score]

    def neuron_scores(self, score, part):
        return self.by_part[part].units[score]

    def part_uncertainty(self, score, part):
        return self.by_part[part].uncertainties.get(score)

    def score_label(self, score):
        return LABELS[score]


@pytest.fixture
def uncertainty():
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
def loc(uncertainty):
    """Localization of two layers with 600 neurons each; only attribution has uncertainty."""
    rng = np.random.default_rng(0)
    return Located(
        {
            "mlp": Scores(
                {"activation": np.array([1.0, 4.0]), "attribution": np.array([-3.0, 1.5])},
                {"activation": rng.normal(size=(2, 600)), "attribution": rng.normal(size=(2, 600))},
                {"attribution": uncertainty},
            )
        }
    )


@pytest.fixture
def mixed(loc, uncertainty):
    """The same localization, and attention with 3 heads in layers 1 and 4."""
    heads = np.array([[1.0, -7.0, 9.0], [0.5, 3.0, 2.0]])
    attention = Scores(
        {"activation": np.array([2.0, 8.0]), "attribution": np.array([3.0, 5.5])},
        {"activation": heads, "attribution": heads},
        {"attribution": uncertainty},
        site_layers=(1, 4),
    )
    return Located(loc.by_part | {"attention": attention})
