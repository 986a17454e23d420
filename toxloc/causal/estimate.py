"""Estimates of the effects of replacing parts of a model, from gradients, for all parts at once."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..localization.activation import Activation, read_means
from ..localization.attribution_pass import AttributionPass
from ..localization.pair_batch import PairReader
from ..models.batching import Row
from ..models.loaded import LoadedModel
from ..models.sites import BySite
from ..support.progress import track
from .replacement import ReplacedPart


def estimated_effects(
    lm: LoadedModel,
    parts: Sequence[ReplacedPart],
    reader: PairReader,
    group: Int64[np.ndarray, " n_pairs"],
    neutral: Sequence[Row],
    steps: int,
) -> tuple[Float64[np.ndarray, "groups n_parts"], float, BySite[Float64[np.ndarray, " _n_units"]]]:
    """Estimate the effect of each part to first order, by one pass over the pairs.

    Args:
        lm: the model, which is left unchanged.
        parts: the parts.
        reader: the pairs, and what replaces the parts.
        group: group of each pair.
        neutral: tokens of the neutral texts, for by="mean".
        steps: number of inputs at which gradients are taken; 0 for the gradient at the original input.

    Returns:
        The sums of the effects over the pairs of each group, the sum of D over all pairs, and the mean effect of every
        unit of the sites of `parts`.
    """
    columns = {part.activation: i for i, part in enumerate(parts) if part.unit is None}
    keys = BySite({part.view.site: part.activation for part in parts if part.unit is not None})
    for part in parts:
        keys.setdefault(part.view.site, Activation.keys(lm, part.view.site))
    chosen = BySite(
        {
            site: [(i, part.unit) for i, part in enumerate(parts) if part.activation is own and part.unit is not None]
            for site, own in keys.items()
        }
    )
    sums, total = np.zeros((int(group.max()) + 1, len(parts))), 0.0
    units = BySite({site: np.zeros(lm.at(site).n_units) for site in keys})

    def add(activation: Activation, values: Float[Tensor, "pairs d"]) -> None:
        if activation in columns:
            np.add.at(sums[:, columns[activation]], group[index], values.sum(1).cpu().double().numpy())
            return
        view = activation.view
        assert view is not None
        per_unit = view.per_unit(values).cpu().double().numpy()
        units[view.site] += per_unit.sum(0) / len(reader.pairs)
        for i, unit in chosen[view.site]:
            np.add.at(sums[:, i], group[index], per_unit[:, unit])

    activations = [*columns, *keys.values()]
    embedding = Activation.embedding(lm) if steps else None
    if reader.by == "mean":
        read_means(lm, [*activations, *filter(None, [embedding])], neutral, skip_first=reader.skip_first)
    attribution = AttributionPass(lm, activations, add, embedding, steps)
    with attribution.hooked():
        for index in track(reader.groups(), f"attribution by {reader.by}"):
            total += float(attribution.read(reader.batch(index)).sum())
    return sums, total, units
