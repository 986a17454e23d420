"""Toxic rates of groups of prompts, such as all prompts of a language or of a category."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..support.intervals import Interval, mean_interval
from .judgement import Judgement

FEW_PROMPTS = 10  # a group with fewer prompts is too small to say anything about it


@dataclass(frozen=True)
class GroupRate:
    """The toxic rate of a group of prompts by one evaluator.

    Attributes:
        rate: share of the group's completions that are toxic.
        rate_ci: 95% bootstrap interval of `rate`, over the prompts of the group.
        n_prompts: number of prompts in the group.
    """

    rate: float
    rate_ci: Interval
    n_prompts: int

    @property
    def too_small(self) -> bool:
        """Whether the group has fewer than 10 prompts, so that its rate says little, whatever its interval."""
        return self.n_prompts < FEW_PROMPTS

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, with the interval as a list, and `too_small`."""
        return asdict(self) | {"rate_ci": list(self.rate_ci), "too_small": self.too_small}


GroupRates = dict[str, dict[str, GroupRate]]  # group → name of the evaluator or combined judgement → rate


def rates_by_group(
    judgements: Mapping[str, Judgement], groups: Sequence[str] | None, seed: int = 0
) -> GroupRates | None:
    """Compute the toxic rate of every group of prompts, by every evaluator.

    All prompts have the same number of completions, so the mean of the groups' rates, weighted by their numbers of
    prompts, is the rate over all prompts.

    Args:
        judgements: scores and verdicts [n_prompts, samples], by name of the evaluator.
        groups: group of each prompt, for example its language; None if the prompts have no groups.
        seed: seed for the bootstrap draws.

    Returns:
        The rates by group, in alphabetical order, and by evaluator; None if the prompts have no groups.

    Example:
        >>> import numpy as np
        >>> toxic = np.array([[True, False], [False, False], [True, True]])
        >>> rates = rates_by_group({"judge": Judgement(toxic.astype(float), toxic)}, ["de", "en", "de"])
        >>> {group: (by_judge["judge"].rate, by_judge["judge"].n_prompts) for group, by_judge in rates.items()}
        {'de': (0.75, 2), 'en': (0.0, 1)}
    """
    if groups is None:
        return None
    members = {group: [i for i, other in enumerate(groups) if other == group] for group in sorted(set(groups))}
    return {
        group: {name: _rate(judgement, rows, seed) for name, judgement in judgements.items()}
        for group, rows in members.items()
    }


def _rate(judgement: Judgement, rows: list[int], seed: int) -> GroupRate:
    per_prompt = judgement.toxic[rows].mean(1)
    return GroupRate(float(per_prompt.mean()), mean_interval(per_prompt, seed), len(rows))
