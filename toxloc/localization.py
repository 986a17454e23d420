"""Which layers and neurons carry toxicity: three scores per layer and per neuron, from one pass per text set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64
from safetensors.numpy import load_file, save_file

from .errors import ToxlocError
from .files import new_folder, read_json, write_json
from .model import LoadedModel
from .prompts import ContrastSet
from .statistics import ContrastStatistics, Moments, collect_contrast

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMAT_VERSION = 1
Scores = tuple[Float64[np.ndarray, " n_layers"], Float64[np.ndarray, "n_layers d_mlp"]]


def _standardised(toxic: Moments, neutral: Moments) -> Float64[np.ndarray, " d"]:
    """(mean_T - mean_N) / sd_pooled, element by element; 0 where an element never varies."""
    var = (toxic.squares + neutral.squares) / (toxic.count + neutral.count)
    difference = toxic.mean - neutral.mean
    return torch.where(var > 0, difference / var.clamp_min(1e-300).sqrt(), 0.0).numpy()


def activation(lm: LoadedModel, s: ContrastStatistics) -> Scores:
    """How differently the MLP behaves on toxic text, in pooled standard deviations.

    Layer: root mean square over d_model of (mean_T(m) - mean_N(m)) / sd_pooled(m). Neuron: the same difference
    of its activation a, signed. The activation contrast behind Meow2X.
    """
    pairs = zip(s.toxic.outputs, s.neutral.outputs, strict=True)
    layers = [np.sqrt(np.mean(_standardised(toxic, neutral) ** 2)) for toxic, neutral in pairs]
    neurons = [_standardised(t, n) for t, n in zip(s.toxic.neurons, s.neutral.neurons, strict=True)]
    return np.array(layers, dtype=np.float64), np.stack(neurons)


def gradient_norm(lm: LoadedModel, s: ContrastStatistics) -> Scores:
    """How fast a small edit of the weights moves the contrast NLL_T - NLL_N.

    Layer: Frobenius norm of G = d contrast / dW_out. Neuron: Euclidean norm of its row of G. Behind TRNE. It says
    where an edit has leverage, which differs with depth whatever the text: not where toxicity lives.
    """
    G = [s.G(layer).double().cpu() for layer in range(lm.n_layers)]
    return np.array([g.norm().item() for g in G]), np.stack([g.norm(dim=1).numpy() for g in G])


def attribution(lm: LoadedModel, s: ContrastStatistics) -> Scores:
    """First-order rise of the contrast when the part is scaled down: what the part itself contributes to toxicity.

    Neuron: -<row of G, row of W_out>. Layer: the sum over its neurons, -<G, W_out>.
    """
    neurons = [-(s.G(layer).double() * lm.W_out(layer).double()).sum(1).cpu().numpy()
               for layer in range(lm.n_layers)]
    return np.array([row.sum() for row in neurons]), np.stack(neurons)


SCORES: dict[str, Callable[[LoadedModel, ContrastStatistics], Scores]] = {
    "activation": activation, "gradient_norm": gradient_norm, "attribution": attribution,
}
NEEDS_GRADIENTS = ("gradient_norm", "attribution")


@dataclass(frozen=True)
class Localization:
    """Scores of every layer and neuron of one model for one contrast set.

    Attributes:
        layers: score name to float64 [n_layers].
        neurons: score name to float64 [n_layers, d_mlp].
        about: the model, its fingerprint and the sizes of the contrast set.
    """

    layers: dict[str, Float64[np.ndarray, " n_layers"]]
    neurons: dict[str, Float64[np.ndarray, "n_layers d_mlp"]]
    about: dict[str, Any]

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
                   {name: arrays[f"neurons.{name}"] for name in names}, about)

    def _known(self, score: str) -> str:
        if score not in self.layers:
            raise ToxlocError(f"Score {score!r} was not computed; there are {', '.join(self.layers)}.")
        return score


def localize(lm: LoadedModel, pairs: ContrastSet,
             scores: Sequence[str] = ("activation", "gradient_norm", "attribution"), *,
             statistics: ContrastStatistics | None = None, skip_first: bool = True,
             max_length: int = 128) -> Localization:
    """Score every layer and neuron by the contrast between toxic and neutral texts.

    Args:
        lm: the model.
        pairs: toxic and neutral texts.
        scores: any of "activation", "gradient_norm", "attribution" (formulas: the functions of those names).
        statistics: what `collect_contrast` found before, to spare the passes.
        skip_first: leave the first position of each text out (it can be an attention sink).
        max_length: tokens read of each text.

    Raises:
        ToxlocError: an unknown score, or an empty set.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> loc = localize(load_model(), load_contrast())
        >>> loc.layer_scores("attribution").shape, loc.neuron_scores("attribution").shape
        ((8,), (8, 1024))
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise ToxlocError(f"Unknown score {', '.join(unknown) or '(none given)'}; choose from {', '.join(SCORES)}.")
    if statistics is None:
        statistics = collect_contrast(lm, pairs, gradients=any(name in NEEDS_GRADIENTS for name in scores),
                                      skip_first=skip_first, max_length=max_length)
    found = {name: SCORES[name](lm, statistics) for name in scores}
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "contrast": pairs.name,
             "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
    return Localization({n: s[0] for n, s in found.items()}, {n: s[1] for n, s in found.items()}, about)


def _check_count(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise ToxlocError(f"Asked for {k} {what}; this model has {available}.")
