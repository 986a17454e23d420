"""AUROC of every output unit of the MLPs' linear maps, which AurA and Damp are fitted from."""

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.activations import mlp_linears, pooled
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet
from .auroc import auroc_of


def unit_aurocs(lm: LoadedModel, pairs: ContrastSet) -> Float64[np.ndarray, "n_layers n_units"]:
    """AUROC of every unit, in the order of `UnitScaling`: of its largest value in a text, toxic against neutral texts.

    The largest value is over the text's real tokens but the first, whose activations can be an attention sink's.

    Raises:
        ToxlocError: no unit tells the two sides apart.
    """
    places = [place for layer in range(lm.n_layers) for place in mlp_linears(lm, layer)]
    toxic, neutral = (
        pooled(lm, texts, places, "max", describe=f"units, {side} texts")
        for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral))
    )
    aurocs = np.concatenate([auroc_of(t.numpy(), n.numpy()) for t, n in zip(toxic, neutral, strict=True)])
    if not (aurocs > 0.5).any():
        raise ToxlocError(
            f"No unit has an AUROC over .5 on the contrast set {pairs.name!r}: its two sides look alike; "
            "give toxic texts that differ from the neutral ones."
        )
    return aurocs.reshape(lm.n_layers, -1)
