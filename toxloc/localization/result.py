"""The result of a localization: scores of every site and unit, with uncertainty."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from safetensors.numpy import load_file, save_file

from ..errors import ToxlocError
from ..support.files import new_folder, read_json, write_json
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FORMAT_VERSION = 2


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
        from ..plots.layers import layer_heatmap

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


def _check_count(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise ToxlocError(f"Asked for {k} {what}; this model has {available}.")
