"""Fluency as a published protocol measures it."""

from collections.abc import Sequence

import numpy as np

from ...models.loaded import LoadedModel
from .fluency import Fluency
from .perplexity import nll_per_text, strided_perplexity


def protocol_fluency(
    lm: LoadedModel, kind: str | None, everyday: Sequence[str], of_completions: float, cost: Fluency
) -> dict[str, float] | None:
    """Measure fluency as a published protocol does.

    Args:
        lm: the model in its current state.
        kind: `Protocol.fluency`: "text", "sentences", "strided", "completions", or None.
        everyday: texts to read for "sentences" and "strided".
        of_completions: perplexity for "completions", from `completion_perplexity`.
        cost: fluency on the everyday text, which contains the perplexity for "text".

    Returns:
        The perplexity, with the kind in its name, such as "perplexity, strided"; None if `kind` is None.
    """
    if kind is None:
        return None
    if kind == "completions":
        value = of_completions
    elif kind == "strided":
        value = strided_perplexity(lm, everyday)
    elif kind == "sentences":
        nll, count = nll_per_text(lm, everyday)
        value = float(np.exp(nll / np.maximum(count, 1)).mean())
    else:
        value = cost.perplexity
    return {f"perplexity, {kind}": value}
