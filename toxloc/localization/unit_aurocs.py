"""AUROC of every output unit of the MLPs' linear maps, from which AurA and Damp are fitted."""

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.activations import mlp_linears, pooled
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet
from .auroc import auroc_of


def unit_aurocs(lm: LoadedModel, pairs: ContrastSet) -> Float64[np.ndarray, "n_layers n_units"]:
    """AUROC of the largest value of every unit in a text, toxic against neutral texts, in the order of `UnitScaling`.

    The largest value is over the text's real tokens without the first, which can be an attention sink.

    Raises:
        ToxlocError: no unit has an AUROC over .5.
    """
    places = [place for layer in range(lm.n_layers) for place in mlp_linears(lm, layer)]
    toxic, neutral = (
        pooled(lm, texts, places, "max", describe=f"units, {side} texts")
        for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral))
    )
    aurocs = np.concatenate([auroc_of(t.numpy(), n.numpy()) for t, n in zip(toxic, neutral, strict=True)])
    if not (aurocs > 0.5).any():
        raise ToxlocError(
            f"No unit has an AUROC over .5 on the contrast set {pairs.name!r}: its two sides look alike to the model; "
            "give toxic texts that differ from the neutral texts."
        )
    return aurocs.reshape(lm.n_layers, -1)
