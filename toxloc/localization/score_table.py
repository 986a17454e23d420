"""The table of the localization scores: what each is called, answers and needs, and its formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from ..support.arguments import as_list
from .score_names import ScoreName
from .scored import Scored
from .scores import (
    activation,
    attribution,
    auroc,
    combined,
    counterfactual,
    editability,
    gradient_calibrated,
    gradient_norm,
    routing,
)
from .statistics import ContrastStatistics
from .uncertainty import Weights

Formula = Callable[[LoadedModel, ContrastStatistics, Sequence[Weights]], Scored]


@dataclass(frozen=True)
class Score:
    """The description and the formula of a score.

    Attributes:
        title: name of the score in figures.
        unit: unit of the score of a site.
        question: question that the score answers.
        formula: function that computes the score.
        needs: statistics that the formula needs besides moments: "gradients", "curvature", "reliance", "peaks",
            "differences".
        signed: whether negative values are meaningful.
        bounds: smallest and largest possible score of a site.
        centre: neutral value, which is evidence neither for nor against toxicity.
        neuron_title: name of the score in figures of neurons, if it differs from `title`.
        only: part that the score is for; None for all parts.
        paired: whether the score compares the two texts of a pair, so that it needs a paired contrast set.
    """

    title: str
    unit: str
    question: str
    formula: Formula
    needs: frozenset[str] = frozenset()
    signed: bool = False
    bounds: tuple[float, float] = (0.0, np.inf)
    centre: float = 0.0
    neuron_title: str = ""
    only: str | None = None
    paired: bool = False


_GRADIENTS = frozenset({"gradients"})
SCORES: dict[str, Score] = {
    "activation": Score("activation contrast", "pooled sd", "does it behave differently on toxic text?", activation),
    "gradient_norm": Score(
        "gradient norm",
        "nats per token and unit of weight",
        "where does a small edit move the contrast most?",
        gradient_norm,
        _GRADIENTS,
    ),
    "gradient_calibrated": Score(
        "gradient norm over its null",
        "times its mean under shuffled labels",
        "is its gradient larger than expected by chance?",
        gradient_calibrated,
        _GRADIENTS,
        centre=1.0,
    ),
    "attribution": Score(
        "attribution",
        "nats per token",
        "how much does it contribute to toxicity?",
        attribution,
        _GRADIENTS,
        signed=True,
        bounds=(-np.inf, np.inf),
    ),
    "counterfactual": Score(
        "counterfactual attribution",
        "nats",
        "does it push towards the toxic token where two texts begin to differ?",
        counterfactual,
        frozenset({"differences"}),
        signed=True,
        bounds=(-np.inf, np.inf),
        paired=True,
    ),
    "combined": Score(
        "attribution and reliance",
        "nats per token",
        "which units learned toxicity?",
        combined,
        _GRADIENTS | {"reliance"},
        signed=True,
        bounds=(-np.inf, np.inf),
    ),
    "auroc": Score(
        "best neuron's AUROC",
        "0.5 is chance",
        "does it detect toxic text?",
        auroc,
        frozenset({"peaks"}),
        bounds=(0.0, 1.0),
        centre=0.5,
        neuron_title="AUROC",
    ),
    "editability": Score(
        "editability",
        "gain per unit of change on neutral text",
        "where is an edit cheap?",
        editability,
        frozenset({"gradients", "curvature"}),
    ),
    "routing": Score(
        "router weight",
        "share of the router's weight",
        "which experts does toxic text use?",
        routing,
        signed=True,
        bounds=(-1.0, 1.0),
        only="expert",
    ),
}
assert set(SCORES) == set(get_args(ScoreName))


def needs_of(scores: Sequence[str]) -> frozenset[str]:
    """Return the statistics that the given scores need, moments included."""
    return frozenset({"moments"}).union(*(SCORES[name].needs for name in scores))


def check_scores(scores: Sequence[str]) -> list[str]:
    """Return the names of scores as a list; raise ToxlocError if a score does not exist, or if no score is given."""
    names = as_list(scores, "the scores")
    unknown = [str(name) for name in names if name not in tuple(SCORES)]
    if unknown or not names:
        raise ToxlocError(f"Unknown score {', '.join(unknown) or '(none given)'}; choose from {', '.join(SCORES)}.")
    return names
