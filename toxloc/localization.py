"""Which layers and neurons carry toxicity: scores with intervals and nulls, from one pass per text set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from safetensors.numpy import load_file, save_file

from .errors import ToxlocError
from .files import new_folder, read_json, write_json
from .model import AnyModel, LoadedModel
from .prompts import ContrastSet
from .scores import SCORES
from .statistics import ContrastStatistics, collect_contrast
from .uncertainty import DRAWS, Uncertainty, Weights

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FORMAT_VERSION = 2
DEFAULT_SCORES = ("activation", "gradient_norm", "attribution")


@dataclass(frozen=True)
class Localization:
    """Scores of every layer and neuron of one model for one contrast set.

    Attributes:
        layers: score name to float64 [n_layers].
        neurons: score name to float64 [n_layers, d_mlp].
        about: the model, its fingerprint and the sizes of the contrast set.
        activation_size: root mean square of every neuron's activation over both sets, float64 [n_layers, d_mlp].
        uncertainty: score name to intervals, nulls and p of its layers; scores without are missing.
    """

    layers: dict[str, Float64[np.ndarray, " n_layers"]]
    neurons: dict[str, Float64[np.ndarray, "n_layers d_mlp"]]
    about: dict[str, Any]
    activation_size: Float64[np.ndarray, "n_layers d_mlp"]
    uncertainty: dict[str, Uncertainty] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores there are."""
        return tuple(self.layers)

    def layer_scores(self, score: str) -> Float64[np.ndarray, " n_layers"]:
        """One number a layer. Raises ToxlocError if the score was not computed."""
        return self.layers[self._known(score)]

    def neuron_scores(self, score: str) -> Float64[np.ndarray, "n_layers d_mlp"]:
        """One number a neuron. Raises ToxlocError if the score was not computed."""
        return self.neurons[self._known(score)]

    def top_layers(self, score: str, k: int) -> list[int]:
        """Return the k layers with the highest score, highest first."""
        values = self.layer_scores(score)
        _check_count(k, len(values), "layers")
        return [int(i) for i in np.argsort(-values, kind="stable")[:k]]

    def top_neurons(self, score: str, k: int) -> list[tuple[int, int]]:
        """Return the k neurons of the whole model with the highest score, as (layer, neuron), highest first."""
        values = self.neuron_scores(score)
        _check_count(k, values.size, "neurons")
        order = np.argsort(-values, axis=None, kind="stable")[:k]
        return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]

    def table(self) -> "pd.DataFrame":
        """One row for each score and layer: value, interval, null, z, p (NaN where a score has no uncertainty).

        Example:
            >>> loc.table().query("score == 'attribution'").nlargest(3, "value")     # doctest: +SKIP
        """
        import pandas as pd

        parts = []
        for name, values in self.layers.items():
            part = pd.DataFrame({"score": name, "layer": range(len(values)), "value": values})
            known = self.uncertainty.get(name)
            for column in Uncertainty.names():
                part[column] = getattr(known, column) if known else np.nan
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def neuron_table(self, score: str, k: int) -> "pd.DataFrame":
        """One row for each of the k neurons with the highest score, with all its scores.

        Example:
            >>> loc.neuron_table("attribution", 20)     # doctest: +SKIP
        """
        import pandas as pd

        tops = self.top_neurons(score, k)
        where = tuple(np.array(tops).T)
        return pd.DataFrame({"layer": where[0], "neuron": where[1],
                             **{name: values[where] for name, values in self.neurons.items()}})

    def heatmap(self) -> "Figure":
        """Plotly heatmap of toxicity by depth: layer against score, each score scaled to its own largest value."""
        from .plots import layer_heatmap

        return layer_heatmap(self)

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write `scores.safetensors` and `localization.json` to a folder.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        with new_folder(folder, overwrite) as partial:
            arrays = {f"layers.{name}": values for name, values in self.layers.items()}
            arrays |= {f"neurons.{name}": values for name, values in self.neurons.items()}
            arrays |= {f"uncertainty.{name}.{part}": getattr(known, part)
                       for name, known in self.uncertainty.items() for part in Uncertainty.names()}
            arrays["activation_size"] = self.activation_size
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()},
                      partial / "scores.safetensors")
            write_json(partial / "localization.json",
                       {"format_version": FORMAT_VERSION, "scores": list(self.layers), **self.about})

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Localization":
        """Read what `save` wrote.

        Raises:
            ToxlocError: the folder holds no localization, or a newer toxloc wrote it.
        """
        about = read_json(Path(folder) / "localization.json", "localization")
        if about.pop("format_version", None) != FORMAT_VERSION:
            raise ToxlocError(f"{folder} was saved in another format version; load it with the toxloc that saved it.")
        names = about.pop("scores")
        arrays = load_file(Path(folder) / "scores.safetensors")
        return cls({name: arrays[f"layers.{name}"] for name in names},
                   {name: arrays[f"neurons.{name}"] for name in names}, about, arrays["activation_size"],
                   {name: Uncertainty(*(arrays[f"uncertainty.{name}.{part}"] for part in Uncertainty.names()))
                    for name in names if f"uncertainty.{name}.p" in arrays})

    def _known(self, score: str) -> str:
        if score not in self.layers:
            raise ToxlocError(f"Score {score!r} was not computed; there are {', '.join(self.layers)}.")
        return score


def localize(lm: AnyModel, pairs: ContrastSet, scores: Sequence[str] = DEFAULT_SCORES, *, draws: int = DRAWS,
             seed: int = 0, statistics: ContrastStatistics | None = None, skip_first: bool = True,
             max_length: int = 128) -> Localization:
    """Score every layer and neuron by the contrast between toxic and neutral texts.

    Args:
        lm: the model; a HookedTransformer of transformer-lens 3.9 will do.
        pairs: toxic and neutral texts. If they are paired, pairs are resampled and shuffled as pairs.
        scores: any of "activation", "gradient_norm", "gradient_calibrated", "attribution", "combined", "auroc",
            "editability" (formulas: the functions of those names in `toxloc.scores`).
        draws: bootstrap draws and shufflings for intervals and p; 0 for none. The model is not run again for them.
        seed: of the draws.
        statistics: what `collect_contrast` found before, to spare the passes.
        skip_first: leave the first position of each text out (it can be an attention sink).
        max_length: tokens read of each text.

    Raises:
        ToxlocError: an unknown score, an empty set, or statistics that lack what a score needs.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> loc = localize(load_model(), load_contrast())
        >>> loc.layer_scores("attribution").shape, loc.neuron_scores("attribution").shape
        ((8,), (8, 1024))
        >>> loc.uncertainty["attribution"].p_adjusted.min() < 0.01
        True
    """
    lm = LoadedModel.of(lm)
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise ToxlocError(f"Unknown score {', '.join(unknown) or '(none given)'}; choose from {', '.join(SCORES)}.")
    if draws < 0:
        raise ToxlocError(f"draws={draws}: give 0 for no intervals, or a number such as {DRAWS}.")
    if statistics is None:
        needs = frozenset().union(*(SCORES[name].needs for name in scores))
        wanted: dict[str, Any] = {need: need in needs for need in ("gradients", "curvature", "reliance", "peaks")}
        statistics = collect_contrast(lm, pairs, skip_first=skip_first, max_length=max_length, **wanted)
    weights = _weights(statistics, draws, seed) if draws else []
    found = {name: SCORES[name].formula(lm, statistics, weights) for name in scores}
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "contrast": pairs.name,
             "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
    sure = {}
    for name, one in found.items():
        if one.draws:
            resampled, null = one.draws
            sure[name] = Uncertainty.of(one.layers, resampled, null, SCORES[name].signed, SCORES[name].bounds)
    return Localization({name: one.layers for name, one in found.items()},
                        {name: one.neurons for name, one in found.items()}, about, _activation_size(statistics), sure)


def _weights(s: ContrastStatistics, draws: int, seed: int) -> list[Weights]:
    assert s.toxic.contributions is not None
    assert s.neutral.contributions is not None
    sizes = len(s.toxic.contributions.tokens), len(s.neutral.contributions.tokens)
    return [Weights.bootstrap(*sizes, s.paired, draws, seed), Weights.shuffled(*sizes, s.paired, draws, seed)]


def _activation_size(s: ContrastStatistics) -> Float64[np.ndarray, "n_layers d_mlp"]:
    """Root mean square over the tokens of both sides."""
    sizes = []
    for t, n in zip(s.toxic.neurons, s.neutral.neurons, strict=True):
        squares = t.squares + t.count * t.mean**2 + n.squares + n.count * n.mean**2
        sizes.append((squares / (t.count + n.count)).sqrt().numpy())
    return np.stack(sizes)


def _check_count(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise ToxlocError(f"Asked for {k} {what}; this model has {available}.")
