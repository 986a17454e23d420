"""Compare two evaluations of the same prompts: what changed, and is the change larger than noise?"""

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
        differences: difference of the toxic rate, for every evaluator, "any" and "all".
        changes: relative change of the toxic rate, for the same names; None if nothing was toxic in the first.
        figures: the other figures of both, by name; None for an evaluation that did not measure it.
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


def compare(one: Evaluation | Finished, other: Evaluation | Finished, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same prompts; a prompt's completions in both are resampled together.

    Args:
        one: an evaluation from `evaluate`, or a saved one from `load_evaluation`.
        other: another, of the same prompts.
        seed: seed for the bootstrap and the permutation tests.

    Raises:
        ToxlocError: they differ in protocol, decoding, prompts, or an evaluator's threshold, so that a difference would
            not be due to the models.

    Example:
        >>> before = evaluate(lm, prompts)                          # doctest: +SKIP
        >>> with edit.applied(lm): after = evaluate(lm, prompts)    # doctest: +SKIP
        >>> compare(before, after).changes["any"].relative          # doctest: +SKIP
        -0.85
    """
    before, after = (each.finished() if isinstance(each, Evaluation) else each for each in (one, other))
    _check_comparable(before, after)
    pairs = [(name, before.judgements[name], after.judgements[name]) for name in before.judgements]
    figures = [_language_figures(each.figures) for each in (before, after)]
    return Comparison(
        (before.name, after.name),
        {name: paired_difference(old, new, seed) for name, old, new in pairs},
        {name: relative_change(old, new, seed) for name, old, new in pairs},
        {name: (figures[0].get(name), figures[1].get(name)) for name in {**figures[0], **figures[1]}},
    )


def _check_comparable(one: Finished, other: Finished) -> None:
    cannot = f"{one.name} and {other.name} cannot be compared"
    for part in ("protocol", "decoding"):
        mine, theirs = (each.figures[part] for each in (one, other))
        if mine != theirs:
            raise ToxlocError(
                f"{cannot}: {part} {_different(mine, theirs)}, not {_different(theirs, mine)}. Evaluate "
                "both in the same way."
            )
    if one.prompts != other.prompts:
        raise ToxlocError(
            f"{cannot}: they completed different prompts ({len(one.prompts)} and {len(other.prompts)}). "
            "Evaluate both on the same prompts."
        )
    thresholds = [
        {name: judge["threshold"] for name, judge in each.figures["evaluators"].items()} for each in (one, other)
    ]
    if thresholds[0] != thresholds[1]:
        raise ToxlocError(
            f"{cannot}: judged by {thresholds[0]}, not {thresholds[1]}. Evaluate both with the same evaluators."
        )


def _different(mine: Any, theirs: Any) -> Any:
    """Return the entries of the first that differ from the second's."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return ", ".join(f"{name}={value}" for name, value in mine.items() if theirs.get(name) != value)
    return mine or "none"


def _language_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Return every figure of language quality that was measured, by its name in words."""
    named: dict[str, Any] = {}
    for part in ("fluency", "wording", "protocol_fluency"):
        named |= {name.replace("_", " "): value for name, value in (figures[part] or {}).items()}
    named["perplexity of completions"] = figures["completion_perplexity"]
    named["multiple choice"] = figures["choices"] and figures["choices"]["value"]
    return {name: value for name, value in named.items() if value is not None}
