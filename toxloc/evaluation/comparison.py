"""Two finished evaluations of the same prompts: what changed, and is that more than noise?"""

from dataclasses import dataclass
from typing import Any

from ..errors import ToxlocError
from .change import Change, Difference, paired_difference, relative_change
from .result import Finished


@dataclass(frozen=True)
class Comparison:
    """What changed from the first evaluation to the second.

    Attributes:
        names: of both.
        differences: of the rate of toxic completions, for every evaluator, "any" and "both".
        changes: the same relative to the first; None where nothing was toxic then.
        figures: of both, what else was measured, by name; None where one of them did not measure it.
    """

    names: tuple[str, str]
    differences: dict[str, Difference]
    changes: dict[str, Change | None]
    figures: dict[str, tuple[float | None, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "names": list(self.names),
            "differences": {name: one.to_dict() for name, one in self.differences.items()},
            "changes": {name: one and one.to_dict() for name, one in self.changes.items()},
            "figures": {name: list(both) for name, both in self.figures.items()},
        }


def compare(one: Finished, other: Finished, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same prompts, which are resampled together.

    Raises:
        ToxlocError: they differ in protocol, decoding, prompts, or an evaluator's threshold, so that a difference would
            not be the models'.

    Example:
        >>> compare(load_evaluation("before"), load_evaluation("after")).changes["any"].relative    # doctest: +SKIP
        -0.85
    """
    how = f"{one.name} and {other.name}"
    for what in ("protocol", "decoding"):
        mine, theirs = (e.figures[what] for e in (one, other))
        if mine != theirs:
            raise ToxlocError(f"{how} cannot be compared: {what} {_only(mine, theirs)}, not {_only(theirs, mine)}. "
                              "Evaluate one of them again, as the other was.")
    if one.prompts != other.prompts:
        raise ToxlocError(f"{how} cannot be compared: they completed different prompts ({len(one.prompts)} and "
                          f"{len(other.prompts)}). Evaluate one of them again with the other's.")
    thresholds = [{name: judge["threshold"] for name, judge in e.figures["evaluators"].items()} for e in (one, other)]
    if thresholds[0] != thresholds[1]:
        raise ToxlocError(f"{how} cannot be compared: judged by {thresholds[0]}, not {thresholds[1]}. Evaluate one of "
                          "them again with the other's evaluators.")
    pairs = [(name, one.judgements[name], other.judgements[name]) for name in one.judgements]
    flat = [_flat(e.figures) for e in (one, other)]
    return Comparison(
        (one.name, other.name),
        {name: paired_difference(before, after, seed) for name, before, after in pairs},
        {name: relative_change(before, after, seed) for name, before, after in pairs},
        {name: (flat[0].get(name), flat[1].get(name)) for name in {**flat[0], **flat[1]}},
    )


def _only(mine: Any, theirs: Any) -> Any:
    """What is different in the first of two."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return ", ".join(f"{name}={value}" for name, value in mine.items() if theirs.get(name) != value)
    return mine or "none"


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """Name every figure of language that was measured."""
    found: dict[str, Any] = {}
    for part in ("fluency", "wording", "protocol_fluency"):
        found |= {name.replace("_", " "): value for name, value in (figures[part] or {}).items()}
    found["perplexity of completions"] = figures["completion_perplexity"]
    found["multiple choice"] = figures["choices"] and figures["choices"]["value"]
    return {name: value for name, value in found.items() if value is not None}
