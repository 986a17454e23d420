"""The result of a localization: scores of all sites and units, with their uncertainty."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from safetensors.numpy import save_file

from ..errors import ToxlocError
from ..models.sites import UNITS, BySite, Site, Unit
from ..support.files import new_folder, read_json, read_tensors, write_json
from .headline import Headline, Removal, headline_of
from .score_names import ScoreName
from .score_table import SCORES, Score
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FORMAT_VERSION = 3
READABLE = (2, 3)  # version 2 stores MLPs only
MLP = "mlp"
# Scores that can have a headline, the default first (`benchmarks.planted_headlines` compares them).
HEADLINES: tuple[ScoreName, ...] = ("attribution", "counterfactual")


@dataclass(frozen=True)
class PartScores:
    """Scores of the sites of one part: of all MLPs, of all attentions, of all experts.

    Attributes:
        sites: the sites, in the order of depth.
        layers: scores of the sites by score name, float64 [n_sites].
        units: scores of the units by score name, float64 [n_sites, n_units]; NaN after the units of a site that has
            fewer than others.
        size: root mean square of every unit's activation over both sets, float64 [n_sites, n_units].
        uncertainty: intervals, null distributions and p-values of the sites by score name; scores without uncertainty
            are missing.
    """

    sites: tuple[Site, ...]
    layers: dict[str, Float64[np.ndarray, " n_sites"]]
    units: dict[str, Float64[np.ndarray, "n_sites n_units"]]
    size: Float64[np.ndarray, "n_sites n_units"]
    uncertainty: dict[str, Uncertainty] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Localization:
    """Scores of the sites and units of one model for one contrast set.

    Unless stated otherwise, properties and calls without `part` refer to the first part that was localized: the MLPs,
    unless only attentions were localized. For MLPs, a layer is its MLP and a unit is a neuron.

    Attributes:
        by_part: scores by part: "mlp", "attention", "mixer", "expert", "shared_expert".
        about: the model, its fingerprint, the name and sizes of the contrast set, and, for the score `counterfactual`,
            the number of pairs that it compares.
    """

    by_part: Mapping[str, PartScores]
    about: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that were localized."""
        return tuple(self.by_part)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the computed scores."""
        return tuple(self._of(None).layers)

    @property
    def layers(self) -> dict[str, Float64[np.ndarray, " n_layers"]]:
        """Scores of the layers by score name, float64 [n_layers]."""
        return self._of(None).layers

    @property
    def neurons(self) -> dict[str, Float64[np.ndarray, "n_layers d_mlp"]]:
        """Scores of the neurons by score name, float64 [n_layers, d_mlp]."""
        return self._of(None).units

    @property
    def activation_size(self) -> Float64[np.ndarray, "n_layers d_mlp"]:
        """Root mean square of every neuron's activation over both sets."""
        return self._of(None).size

    @property
    def uncertainty(self) -> dict[str, Uncertainty]:
        """Intervals, nulls and p-values of the layers by score name; scores without uncertainty are missing."""
        return self._of(None).uncertainty

    def sites(self, part: str | None = None) -> tuple[Site, ...]:
        """Return the sites of a part, or of all parts."""
        return tuple(site for name, scores in self.by_part.items() for site in scores.sites if part in (None, name))

    def layer_scores(self, score: str, part: str | None = None) -> Float64[np.ndarray, " n_layers"]:
        """Return one value per layer. Raises ToxlocError if the score was not computed."""
        return self._of(part).layers[self._known(score)]

    def neuron_scores(self, score: str, part: str | None = None) -> Float64[np.ndarray, "n_layers n_units"]:
        """Return one value per neuron (or head). Raises ToxlocError if the score was not computed."""
        return self._of(part).units[self._known(score)]

    def part_uncertainty(self, score: str, part: str | None = None) -> Uncertainty | None:
        """Return the uncertainty of a part's layers, or None if the score has none."""
        return self._of(part).uncertainty.get(score)

    def site_scores(self, score: str) -> BySite[float]:
        """Return the score of every site of all parts."""
        self._known(score)
        return BySite(
            {
                site: float(value)
                for scores in self.by_part.values()
                for site, value in zip(scores.sites, scores.layers[score], strict=True)
            }
        )

    def unit_scores(self, score: str) -> BySite[Float64[np.ndarray, " n_units"]]:
        """Return the score of every unit of all parts, by site. Raises ToxlocError if the score was not computed."""
        self._known(score)
        return BySite(
            {
                site: row[~np.isnan(size)]
                for scores in self.by_part.values()
                for site, row, size in zip(scores.sites, scores.units[score], scores.size, strict=True)
            }
        )

    def unit_sizes(self) -> BySite[Float64[np.ndarray, " n_units"]]:
        """Return the root mean square of every unit's activation, by site."""
        return BySite(
            {
                site: row[~np.isnan(row)]
                for scores in self.by_part.values()
                for site, row in zip(scores.sites, scores.size, strict=True)
            }
        )

    def top_layers(self, score: str, k: int, part: str | None = None) -> list[int]:
        """Return the k layers with the highest score, highest first."""
        values = self.layer_scores(score, part)
        _check_count(k, len(values), "layers")
        return [self._of(part).sites[i].layer for i in np.argsort(-values, kind="stable")[:k]]

    def top_neurons(self, score: str, k: int) -> list[tuple[int, int]]:
        """Return the k neurons of the whole model with the highest score, as (layer, neuron), highest first.

        Raises:
            ToxlocError: MLPs were not localized, the score was not computed, or k is not between 1 and the number of
                neurons.
        """
        return [(site.layer, unit) for site, unit in self.top_units(score, k, MLP)]

    def top_heads(self, score: str, k: int) -> list[Unit]:
        """Return the k attention heads of the whole model with the highest score, as (site, head), highest first.

        Knock-outs, Meow2X and `patch` take them in this form; (3, 2) would mean neuron 2 of layer 3.

        Raises:
            ToxlocError: attentions were not localized, the score was not computed, or k is not between 1 and the number
                of heads.

        Example:
            >>> loc.top_heads("counterfactual", 2)     # doctest: +SKIP
            [(Site(layer=3, part='attention'), 2), (Site(layer=5, part='attention'), 0)]
        """
        return self.top_units(score, k, "attention")

    def top_sites(self, score: str, k: int) -> list[Site]:
        """Return the k sites of all parts with the highest score, highest first."""
        values = self.site_scores(score)
        _check_count(k, len(values), "sites")
        return sorted(values, key=lambda site: -values[site])[:k]

    def top_units(self, score: str, k: int, part: str | None = None) -> list[Unit]:
        """Return the k units of a part with the highest score, highest first, as (site, unit).

        Example:
            >>> loc.top_units("attribution", 5, "attention")     # doctest: +SKIP
            [(Site(layer=3, part='attention'), 2), ...]
        """
        values, sites = self.neuron_scores(score, part), self._of(part).sites
        _check_count(k, int((~np.isnan(values)).sum()), "units")
        order = np.argsort(-values, axis=None, kind="stable")[:k]
        return [(sites[int(i) // values.shape[1]], int(i) % values.shape[1]) for i in order]

    def headline(self, score: str | None = None, removal: Iterable[Removal] = ()) -> Headline:
        """Say whether a single site stands out, from a score of all sites of all parts and from removals.

        Args:
            score: name of a computed score; by default "attribution" or, without it, "counterfactual". The headline of
                attribution names more of the planted sites in the planted models.
            removal: results of removing single sites, on texts that are held out from this localization: those of
                `knockout`, or `CausalProof.layers`. `confirm` measures those that the headline needs.

        Raises:
            ToxlocError: the score was not computed.

        Example:
            >>> loc.headline().text                                                     # doctest: +SKIP
            'No single site stands out (adjusted p .17).'
            >>> loc.headline(removal=[knockout(lm, held_out, [3])]).stands_out          # doctest: +SKIP
            True
        """
        if score is None:
            score = next((name for name in HEADLINES if name in self.scores), HEADLINES[0])
        label = self.score_label(score)
        p_adjusted = {
            site: float(p)
            for part in self.by_part.values()
            if score in part.uncertainty
            for site, p in zip(part.sites, part.uncertainty[score].p_adjusted, strict=True)
        }
        values = {site: value - label.centre for site, value in self.site_scores(score).items()}
        return headline_of(label.title, values, p_adjusted, removal)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(scores.sites)} × {part}" for part, scores in self.by_part.items())
        about = ", ".join(f"{name} {self.about[name]!r}" for name in ("model", "contrast") if name in self.about)
        verdict = f": {self.headline().text}" if any(name in self.scores for name in HEADLINES) else ""
        return f"Localization({about}; {counts}; {', '.join(self.scores)}){verdict}"

    def score_label(self, score: str) -> Score:
        """Return the title, unit and neutral value of a score; the title of a score unknown to toxloc is its name."""
        self._known(score)
        return SCORES.get(score) or Score(score, "", "", SCORES["activation"].formula)

    def table(self) -> "pd.DataFrame":
        """Return one row per score and site: value, interval, null, z, p-values (NaN for scores without uncertainty).

        Example:
            >>> loc.table().query("score == 'attribution'").nlargest(3, "value")     # doctest: +SKIP
        """
        import pandas as pd

        rows = []
        for part, scores in self.by_part.items():
            for name, values in scores.layers.items():
                frame = pd.DataFrame(
                    {
                        "score": name,
                        "part": part,
                        "layer": [site.layer for site in scores.sites],
                        **({"expert": [site.expert for site in scores.sites]} if part == "expert" else {}),
                        "value": values,
                    }
                )
                uncertainty = scores.uncertainty.get(name)
                for column in Uncertainty.names():
                    frame[column] = getattr(uncertainty, column) if uncertainty else np.nan
                rows.append(frame)
        return pd.concat(rows, ignore_index=True)

    def neuron_table(self, score: str, k: int, part: str | None = None) -> "pd.DataFrame":
        """Return one row for each of the k units with the highest score, with all scores of the unit.

        Example:
            >>> loc.neuron_table("attribution", 20)     # doctest: +SKIP
        """
        import pandas as pd

        scores = self._of(part)
        tops = self.top_units(score, k, part)
        place = (np.array([scores.sites.index(site) for site, _ in tops]), np.array([unit for _, unit in tops]))
        return pd.DataFrame(
            {
                "layer": [site.layer for site, _ in tops],
                **({"expert": [site.expert for site, _ in tops]} if scores.sites[0].part == "expert" else {}),
                UNITS[scores.sites[0].part]: place[1],
                **{name: values[place] for name, values in scores.units.items()},
            }
        )

    def heatmap(self) -> "Figure":
        """Return a Plotly heatmap of layer against score, each score coloured relative to its largest value."""
        from ..plots import layer_heatmap  # plotly is slow to import

        return layer_heatmap(self)

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write `scores.safetensors` and `localization.json` to a folder.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        with new_folder(folder, overwrite) as partial:
            arrays: dict[str, np.ndarray] = {}
            for part, scores in self.by_part.items():
                prefix = "" if part == MLP else f"{part}/"
                arrays |= {f"{prefix}layers.{name}": values for name, values in scores.layers.items()}
                arrays |= {f"{prefix}neurons.{name}": values for name, values in scores.units.items()}
                arrays |= {
                    f"{prefix}uncertainty.{name}.{column}": getattr(uncertainty, column)
                    for name, uncertainty in scores.uncertainty.items()
                    for column in Uncertainty.names()
                }
                arrays[f"{prefix}activation_size"] = scores.size
            save_file(
                {name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial / "scores.safetensors"
            )
            write_json(
                partial / "localization.json",
                {
                    "format_version": FORMAT_VERSION,
                    "scores": list(self.scores),
                    "sites": {part: [str(site) for site in scores.sites] for part, scores in self.by_part.items()},
                    **self.about,
                },
            )

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Localization":
        """Read a folder that `save` wrote, including folders of format version 2, which lists no sites.

        Raises:
            ToxlocError: the folder holds no localization, is damaged, or has an unknown format version.
        """
        about = read_json(Path(folder) / "localization.json", "localization")
        if about.pop("format_version", None) not in READABLE:
            raise ToxlocError(f"{folder} was saved in another format version; load it with the toxloc that saved it.")
        tensors = read_tensors(Path(folder) / "scores.safetensors", "localization")
        try:
            names = about.pop("scores")
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            n_layers = len(arrays[f"layers.{names[0]}"]) if f"layers.{names[0]}" in arrays else 0
            sites = about.pop("sites", {MLP: [str(Site(layer)) for layer in range(n_layers)]})
            by_part = {
                part: _read_part(arrays, "" if part == MLP else f"{part}/", names, site_names)
                for part, site_names in sites.items()
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ToxlocError(f"The localization in {folder} is damaged or incomplete: {error!r}") from error
        return cls(by_part, about)

    def _of(self, part: str | None) -> PartScores:
        part = self.parts[0] if part is None else part
        if part not in self.by_part:
            raise ToxlocError(
                f"Part {part!r} was not localized; this localization has {', '.join(self.by_part)}. "
                "Add the part to the argument parts of localize."
            )
        return self.by_part[part]

    def _known(self, score: str) -> str:
        if score not in self.scores:
            raise ToxlocError(f"Score {score!r} was not computed; choose from {', '.join(self.scores)}.")
        return score


def stacked(rows: "list[np.ndarray]") -> Float64[np.ndarray, "n_sites n_units"]:
    """Stack the values of the units of several sites; NaN follows the units of a site that has fewer than others."""
    width = max(len(row) for row in rows)
    return np.stack([np.pad(row.astype(np.float64), (0, width - len(row)), constant_values=np.nan) for row in rows])


def _read_part(arrays: Mapping[str, np.ndarray], prefix: str, names: list[str], sites: list[str]) -> PartScores:
    shape = arrays[f"{prefix}activation_size"].shape
    if len(shape) != 2 or len(sites) != shape[0]:
        raise ValueError(f"{len(sites)} sites are listed, but activation_size has the shape {shape}")
    for name, array in arrays.items():
        kind = name.removeprefix(prefix).split(".")[0]
        expected = {"layers": shape[:1], "uncertainty": shape[:1], "neurons": shape}.get(kind)
        if name.startswith(prefix) and expected is not None and array.shape != expected:
            raise ValueError(f"{name} has the shape {array.shape} instead of {expected}")
    return PartScores(
        tuple(Site.of(site) for site in sites),
        {name: arrays[f"{prefix}layers.{name}"] for name in names},
        {name: arrays[f"{prefix}neurons.{name}"] for name in names},
        arrays[f"{prefix}activation_size"],
        {
            name: Uncertainty(*(arrays[f"{prefix}uncertainty.{name}.{column}"] for column in Uncertainty.names()))
            for name in names
            if f"{prefix}uncertainty.{name}.p" in arrays
        },
    )


def _check_count(k: int, available: int, kind: str) -> None:
    if not 1 <= k <= available:
        raise ToxlocError(f"k={k}: give a number from 1 to {available}, the number of localized {kind}.")
