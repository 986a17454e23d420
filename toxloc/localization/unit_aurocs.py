"""AUROC of every output unit of the MLPs' linear maps, from which AurA and Damp are fitted."""

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.activations import mlp_linears, pooled
from ..models.loaded import LoadedModel
from ..models.sites import BySite
from ..texts.contrast import ContrastSet
from .auroc import auroc_of


def unit_aurocs(lm: LoadedModel, pairs: ContrastSet) -> BySite[Float64[np.ndarray, " _n_units"]]:
    """AUROC of the largest value of every unit in a text, by site, for toxic against neutral texts.

    The units of a site are in the order of `UnitScaling`. The largest value is over the text's real tokens without the
    first, which can be an attention sink.

    Raises:
        ToxlocError: no unit has an AUROC over .5.
    """
    by_site = {site: mlp_linears(lm, site) for site in lm.sites_of_choice("mlp")}
    places = [place for maps in by_site.values() for place in maps]
    toxic, neutral = (
        pooled(lm, texts, places, "max", describe=f"units, {side} texts")
        for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral))
    )
    aurocs = [auroc_of(t.numpy(), n.numpy()) for t, n in zip(toxic, neutral, strict=True)]
    if not any((values > 0.5).any() for values in aurocs):
        raise ToxlocError(
            f"No unit has an AUROC over .5 on the contrast set {pairs.name!r}: its two sides look alike to the model; "
            "give toxic texts that differ from the neutral texts."
        )
    remaining = iter(aurocs)
    return BySite({site: np.concatenate([next(remaining) for _ in maps]) for site, maps in by_site.items()})
