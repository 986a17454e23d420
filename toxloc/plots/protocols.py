"""Protocols of the objects that figures draw, so that this room imports none of the rooms whose results it draws.

Any object with these members can be drawn, not only the results of toxloc.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64


@runtime_checkable
class ScoreLabel(Protocol):
    """Title and unit of a score in figures.

    Attributes:
        title: title of the score, for example "best neuron's AUROC".
        neuron_title: title of the score of a single neuron or head, for example "AUROC"; empty if it equals `title`.
        unit: unit of the score; empty if it has no unit.
        centre: value that carries no information, for example 0.5 for an AUROC; the centre of the colour scale.
        question: question that the score answers; empty if it is unknown.
    """

    @property
    def title(self) -> str: ...
    @property
    def neuron_title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def centre(self) -> float: ...
    @property
    def question(self) -> str: ...


@runtime_checkable
class Uncertainty(Protocol):
    """Uncertainty of one score for the sites of one part; every field is float64 [n_sites].

    Attributes:
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
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
    """The MLP or the attention of one layer, or an expert of it.

    Attributes:
        layer: number of the layer.
        part: name of the part, such as "mlp" or "attention".
        expert: number of the expert; None for other sites.
        title: name in figures, such as "layer 3".
    """

    @property
    def layer(self) -> int: ...
    @property
    def part(self) -> str: ...
    @property
    def expert(self) -> int | None: ...
    @property
    def title(self) -> str: ...


@runtime_checkable
class Localization(Protocol):
    """Scores of the sites of each part of one model, and of their units (neurons of an MLP, heads of attention).

    Attributes:
        about: facts about the localization; the key "model" holds the name of the model.
        scores: names of the computed scores.
        parts: names of the parts, for example "mlp" and "attention"; figures of units draw the first by default.
    """

    @property
    def about(self) -> Mapping[str, Any]: ...
    @property
    def scores(self) -> Sequence[str]: ...
    @property
    def parts(self) -> Sequence[str]: ...

    def sites(self, part: str, /) -> Sequence[Site]:
        """Return the sites of a part in the order of depth; some layers can lack the part."""

    def layer_scores(self, score: str, part: str, /) -> Float64[np.ndarray, " n_sites"]:
        """Return one value per site; raise ToxlocError if the score or the part is missing."""

    def neuron_scores(self, score: str, part: str, /) -> Float64[np.ndarray, "n_sites n_units"]:
        """Return one value per unit; raise ToxlocError if the score or the part is missing."""

    def part_uncertainty(self, score: str, part: str, /) -> Uncertainty | None:
        """Return the uncertainty of a score for the sites; None if it was not computed."""

    def score_label(self, score: str, /) -> ScoreLabel:
        """Return the title and the unit of a score."""


@runtime_checkable
class LogitLens(Protocol):
    """How much likelier the toxic word of a pair is than the neutral word, by depth.

    Attributes:
        model: name of the model.
        baseline: what is subtracted: "none", or a mean over "neutral" text or "other_prefixes".
        difference: nats, float64 [n_layers + 1], from the embedding to the output.
        uncertainty: intervals and p-values of `difference`; None if they were not computed.
        step: change of `difference` by each block, float64 [n_layers].
        step_uncertainty: intervals and p-values of `step`; None if they were not computed.
    """

    @property
    def model(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def difference(self) -> Float64[np.ndarray, " n_depths"]: ...
    @property
    def uncertainty(self) -> Uncertainty | None: ...
    @property
    def step(self) -> Float64[np.ndarray, " n_layers"]: ...
    @property
    def step_uncertainty(self) -> Uncertainty | None: ...


@runtime_checkable
class Knockout(Protocol):
    """The measured effect of removing a layer or some neurons.

    Attributes:
        layers: the removed layers.
        sites: the removed sites; an MLP is a layer.
        toxic_rise: rise of the NLL of toxic text, in nats per token.
        neutral_rise: rise of the NLL of neutral text, in nats per token.
        effect: toxic_rise - neutral_rise.
        effect_ci: 95% interval of the effect.
        breaks_model: whether neutral text becomes so unlikely that the effect says little.
        perplexity_ratio: perplexity of everyday text divided by that of the unedited model; None if not measured.
        toxic_rate: share of toxic completions; None if no completions were sampled.
        toxic_rate_before: share of toxic completions of the unedited model; None if no completions were sampled.
    """

    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def sites(self) -> Sequence[Site]: ...
    @property
    def toxic_rise(self) -> float: ...
    @property
    def neutral_rise(self) -> float: ...
    @property
    def effect(self) -> float: ...
    @property
    def effect_ci(self) -> tuple[float, float]: ...
    @property
    def breaks_model(self) -> bool: ...
    @property
    def perplexity_ratio(self) -> float | None: ...
    @property
    def toxic_rate(self) -> float | None: ...
    @property
    def toxic_rate_before(self) -> float | None: ...


@runtime_checkable
class KnockoutCurve(Protocol):
    """The effects of removing increasing numbers of neurons.

    Attributes:
        score_title: title of the score that orders the neurons.
        counts: numbers of removed neurons.
        ordered: for each count, the removal of the neurons with the highest scores.
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
        score_title: title of the score.
        parts: kind of the parts: "layers", "sites" or "neurons".
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
    """The effect of removing each layer, and the correlation of the scores with the effects of removal.

    Attributes:
        layers: one removal per layer of every part that was removed.
        correlations: one entry per score and kind of part.
    """

    @property
    def layers(self) -> Sequence[Knockout]: ...
    @property
    def correlations(self) -> Sequence[Correlation]: ...


@runtime_checkable
class FaithfulnessCurve(Protocol):
    """Faithfulness at each share of units, for one score and one order.

    Attributes:
        score: name of the score.
        score_title: title of the score.
        order: "kept" or "removed", if the units with the highest scores are kept or removed; other orders are not
            drawn.
        faithfulness: faithfulness at each share.
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        controls: the same for random units, one row per draw.
    """

    @property
    def score(self) -> str: ...
    @property
    def score_title(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def faithfulness(self) -> Float64[np.ndarray, " n_shares"]: ...
    @property
    def low(self) -> Float64[np.ndarray, " n_shares"]: ...
    @property
    def high(self) -> Float64[np.ndarray, " n_shares"]: ...
    @property
    def controls(self) -> Float64[np.ndarray, "n_controls n_shares"]: ...


@runtime_checkable
class Faithfulness(Protocol):
    """Curves of faithfulness over the share of units that are kept or removed.

    Attributes:
        shares: the shares, in rising order.
        counts: number of units at each share.
        n_pairs: number of pairs that the model is measured on.
        curves: one curve per score and order.
    """

    @property
    def shares(self) -> Sequence[float]: ...
    @property
    def counts(self) -> Sequence[int]: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def curves(self) -> Sequence[FaithfulnessCurve]: ...


@runtime_checkable
class TokenView(Protocol):
    """Values per layer and token of one text.

    Attributes:
        attribution: nats, float64 [n_layers, pos].
        activation: standard deviations, float64 [n_layers, pos]; None if it was not computed.
        layers: number of the layer of each row; empty if the rows are all layers.
    """

    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def attribution(self) -> Float64[np.ndarray, "n_layers pos"]: ...
    @property
    def activation(self) -> Float64[np.ndarray, "n_layers pos"] | None: ...

    def shown(self, masked: bool = ..., /) -> Sequence[str]:
        """Return the tokens as text for display, with offensive words masked unless `masked` is off."""


@runtime_checkable
class AttentionPattern(Protocol):
    """What an attention head reads from each token of one text at each of its tokens.

    Attributes:
        site: the attention of the head.
        head: number of the head.
        by: "attention" or "norm": the kind of the weights.
        weights: weight of each source (column) at each query (row), float64 [pos, pos].
    """

    @property
    def site(self) -> Site: ...
    @property
    def head(self) -> int: ...
    @property
    def by(self) -> str: ...
    @property
    def weights(self) -> Float64[np.ndarray, "pos pos"]: ...

    def shown(self, masked: bool = ..., /) -> Sequence[str]:
        """Return the tokens as text for display, with offensive words masked unless `masked` is off."""


@runtime_checkable
class Cell(Protocol):
    """One configuration of a sweep.

    Attributes:
        model: name or path of the model.
        contrast: name or path of the contrast set.
        seed: seed of the cell.
        benchmark: name of the set of prompts.
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
