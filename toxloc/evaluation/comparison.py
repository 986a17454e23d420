"""Compare two evaluations of the same prompts, and test whether a change is larger than noise."""

from dataclasses import dataclass
from typing import Any

from ..errors import ToxlocError
from .change import Change, Difference, paired_difference, relative_change
from .result import Evaluation, Finished


@dataclass(frozen=True)
class Comparison:
    """Changes from the first evaluation to the second.

    Attributes:
        names: names of the two evaluations.
        differences: difference of the toxic rate, for every evaluator and combined judgement.
        changes: relative change of the toxic rate, for the same names; None if no completion was toxic in the first
            evaluation.
        figures: the other figures of both evaluations, by name; None for an evaluation that did not measure the figure.
    """

    names: tuple[str, str]
    differences: dict[str, Difference]
    changes: dict[str, Change | None]
    figures: dict[str, tuple[float | None, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "names": list(self.names),
            "differences": {name: difference.to_dict() for name, difference in self.differences.items()},
            "changes": {name: change and change.to_dict() for name, change in self.changes.items()},
            "figures": {name: list(values) for name, values in self.figures.items()},
        }


def compare(before: Evaluation | Finished, after: Evaluation | Finished, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same prompts.

    The bootstrap resamples prompts, so that the completions of a prompt in both evaluations stay together.

    Args:
        before: an evaluation from `evaluate` or `load_evaluation`.
        after: another evaluation of the same prompts, for example of the edited model.
        seed: seed for the bootstrap and the permutation tests.

    Raises:
        ToxlocError: the evaluations differ in protocol, decoding, prompts, or the evaluators and their thresholds, so
            that a difference would not be due to the models.

    Example:
        >>> before = evaluate(lm, prompts)                          # doctest: +SKIP
        >>> with edit.applied(lm): after = evaluate(lm, prompts)    # doctest: +SKIP
        >>> compare(before, after).changes["any"].relative          # doctest: +SKIP
        -0.85
    """
    first, second = (
        evaluation.finished() if isinstance(evaluation, Evaluation) else evaluation for evaluation in (before, after)
    )
    _check_comparable(first, second)
    pairs = [(name, first.judgements[name], second.judgements[name]) for name in first.judgements]
    figures = [_language_figures(evaluation.figures) for evaluation in (first, second)]
    return Comparison(
        (first.name, second.name),
        {name: paired_difference(old, new, seed) for name, old, new in pairs},
        {name: relative_change(old, new, seed) for name, old, new in pairs},
        {name: (figures[0].get(name), figures[1].get(name)) for name in {**figures[0], **figures[1]}},
    )


def _check_comparable(before: Finished, after: Finished) -> None:
    cannot = f"{before.name} and {after.name} cannot be compared"
    for part in ("protocol", "decoding"):
        old, new = (evaluation.figures[part] for evaluation in (before, after))
        if old != new:
            raise ToxlocError(
                f"{cannot}: their {part} differs ({_differing(old, new)} and {_differing(new, old)}). Evaluate both "
                f"with the same {part}."
            )
    if before.prompts != after.prompts:
        raise ToxlocError(
            f"{cannot}: their prompts differ ({len(before.prompts)} and {len(after.prompts)} prompts). "
            "Evaluate both on the same prompts."
        )
    cards = [evaluation.figures["evaluators"] for evaluation in (before, after)]
    thresholds = [{name: card["threshold"] for name, card in of_each.items()} for of_each in cards]
    if thresholds[0] != thresholds[1]:
        raise ToxlocError(
            f"{cannot}: their evaluators or thresholds differ ({thresholds[0]} and {thresholds[1]}). Evaluate both "
            "with the same evaluators and thresholds."
        )
    for name, card in cards[0].items():
        weights = card.get("weights"), cards[1][name].get("weights")  # evaluations before version 0.3 have none
        if None not in weights and weights[0] != weights[1]:
            raise ToxlocError(
                f"{cannot}: the evaluator {name} had other weights ({weights[0]} and {weights[1]}). Evaluate both with "
                "the same evaluator."
            )


def _differing(value: Any, other: Any) -> Any:
    """Return the entries of a dictionary that differ from `other`; return any other value whole, and None as "none"."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items() if other.get(name) != entry)
    return value or "none"


def _language_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Return every figure of language quality that was measured, by its name in words."""
    named: dict[str, Any] = {}
    for part in ("fluency", "wording", "protocol_fluency"):
        named |= {name.replace("_", " "): value for name, value in (figures[part] or {}).items()}
    named["perplexity of completions"] = figures["completion_perplexity"]
    named["multiple choice"] = figures["choices"] and figures["choices"]["value"]
    return {name: value for name, value in named.items() if value is not None}
