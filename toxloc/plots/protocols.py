"""The shape of the objects that figures draw, so that this room imports none of the rooms it draws.

Any object with these members can be drawn: the results of toxloc, or an object of your own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64


@runtime_checkable
class ScoreLabel(Protocol):
    """How figures name a score.

    Attributes:
        title: the score as text, for example "best neuron's AUROC".
        neuron_title: the same for a single neuron or head, for example "AUROC"; empty if it is the title.
        unit: its unit; empty if it has none.
        centre: the value that carries no information, for example 0.5 for an AUROC; colours start from it.
    """

    @property
    def title(self) -> str: ...
    @property
    def neuron_title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def centre(self) -> float: ...


@runtime_checkable
class Uncertainty(Protocol):
    """Uncertainty of one score of the sites of one part; every field is float64 [n_sites].

    Attributes:
        low: lower end of the 95% interval.
        high: upper end.
        null_mean: mean under shuffled labels.
        null_sd: standard deviation under shuffled labels.
        z: (score - null_mean) / null_sd.
        p_adjusted: p-value, adjusted for testing every site.
    """

    @property
    def low(self) -> Float64[np.ndarray, " n_sites"]: ...
    @property
    def high(self) -> Float64[np.ndarray, " n_sites"]: ...
    @property
    def null_mean(self) -> Float64[np.ndarray, " n_sites"]: ...
    @property
    def null_sd(self) -> Float64[np.ndarray, " n_sites"]: ...
    @property
    def z(self) -> Float64[np.ndarray, " n_sites"]: ...
    @property
    def p_adjusted(self) -> Float64[np.ndarray, " n_sites"]: ...


@runtime_checkable
class Site(Protocol):
    """The MLP or the attention of one layer.

    Attributes:
        layer: number of the layer.
    """

    @property
    def layer(self) -> int: ...


@runtime_checkable
class Localization(Protocol):
    """Scores of one model: of the sites of each part, and of their units (neurons of an MLP, heads of attention).

    Attributes:
        about: "model" is the model's name.
        scores: names of the computed scores.
        parts: names of the parts, for example "mlp" and "attention"; figures draw the first by default.
    """

    @property
    def about(self) -> Mapping[str, Any]: ...
    @property
    def scores(self) -> Sequence[str]: ...
    @property
    def parts(self) -> Sequence[str]: ...

    def sites(self, part: str, /) -> Sequence[Site]:
        """Return the sites of a part in the order of depth; a part can be missing in some layers."""

    def layer_scores(self, score: str, part: str, /) -> Float64[np.ndarray, " n_sites"]:
        """Return one number per site; raise ToxlocError if the score or the part is missing."""

    def neuron_scores(self, score: str, part: str, /) -> Float64[np.ndarray, "n_sites n_units"]:
        """Return one number per unit; raise ToxlocError if the score or the part is missing."""

    def part_uncertainty(self, score: str, part: str, /) -> Uncertainty | None:
        """Return the uncertainty of a score of the sites; None if there is none."""

    def score_label(self, score: str, /) -> ScoreLabel:
        """Return how figures name a score."""


@runtime_checkable
class Knockout(Protocol):
    """The measured effect of removing a layer or some neurons.

    Attributes:
        layers: the removed layers.
        toxic_rise: rise of the NLL of toxic text, in nats per token.
        neutral_rise: rise of the NLL of neutral text.
        effect: toxic_rise - neutral_rise.
        effect_ci: 95% interval of the effect.
        perplexity_ratio: perplexity of everyday text over that of the whole model; None if it was not measured.
        toxic_rate: share of toxic completions; None if no completions were sampled.
        toxic_rate_before: the same share of the whole model.
    """

    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def toxic_rise(self) -> float: ...
    @property
    def neutral_rise(self) -> float: ...
    @property
    def effect(self) -> float: ...
    @property
    def effect_ci(self) -> tuple[float, float]: ...
    @property
    def perplexity_ratio(self) -> float | None: ...
    @property
    def toxic_rate(self) -> float | None: ...
    @property
    def toxic_rate_before(self) -> float | None: ...


@runtime_checkable
class KnockoutCurve(Protocol):
    """The effect of removing more and more neurons.

    Attributes:
        score_title: title of the score that orders the neurons.
        counts: how many neurons were removed.
        ordered: for each count, the removal of the neurons with the highest score.
        controls: for each count, removals of random neurons.
    """

    @property
    def score_title(self) -> str: ...
    @property
    def counts(self) -> Sequence[int]: ...
    @property
    def ordered(self) -> Sequence[Knockout]: ...
    @property
    def controls(self) -> Sequence[Sequence[Knockout]]: ...


@runtime_checkable
class Correlation(Protocol):
    """Rank correlation of a score with the effect of removal.

    Attributes:
        score: name of the score.
        score_title: its title.
        parts: "layers" or "neurons".
        n: number of removed parts.
        spearman: Spearman's ρ.
        ci: 95% bootstrap interval over parts.
    """

    @property
    def score(self) -> str: ...
    @property
    def score_title(self) -> str: ...
    @property
    def parts(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def spearman(self) -> float: ...
    @property
    def ci(self) -> tuple[float, float]: ...


@runtime_checkable
class CausalProof(Protocol):
    """The effect of removing each layer, and how well the scores predict such effects.

    Attributes:
        layers: one removal per layer.
        correlations: one entry per score and kind of part.
    """

    @property
    def layers(self) -> Sequence[Knockout]: ...
    @property
    def correlations(self) -> Sequence[Correlation]: ...


@runtime_checkable
class TokenView(Protocol):
    """Numbers of every layer at every token of one text.

    Attributes:
        attribution: nats, float64 [n_layers, pos].
        activation: standard deviations, float64 [n_layers, pos]; None if it was not computed.
    """

    @property
    def attribution(self) -> Float64[np.ndarray, "n_layers pos"]: ...
    @property
    def activation(self) -> Float64[np.ndarray, "n_layers pos"] | None: ...

    def shown(self, masked: bool = ..., /) -> Sequence[str]:
        """Return the tokens as text for display, with offensive words masked unless `masked` is off."""


@runtime_checkable
class Cell(Protocol):
    """One configuration of a sweep.

    Attributes:
        model: name or path of the model.
        contrast: name or path of the contrast set.
        seed: its seed.
        benchmark: name of the prompts.
        treatment: the method with its settings, in one line.
    """

    @property
    def model(self) -> str: ...
    @property
    def contrast(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def benchmark(self) -> str: ...
    @property
    def treatment(self) -> str: ...
