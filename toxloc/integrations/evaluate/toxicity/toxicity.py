"""The measurement of toxicity for Hugging Face evaluate. Needs toxloc[evaluate].

`evaluate.load` copies this file and imports the copy, so the imports from toxloc are absolute.
"""

from typing import Any, Literal

import datasets

from toxloc.errors import ToxlocError
from toxloc.evaluation.judging import judge
from toxloc.integrations.judges import get_judges

try:
    import evaluate
except ImportError as error:
    raise ToxlocError("The package evaluate is not installed; run pip install 'toxloc[evaluate]'.") from error

DESCRIPTION = "Scores texts for toxicity with several judges of toxloc, and combines their verdicts."
INPUTS = """
Args:
    predictions (list of str): the texts.
    judges (list of str, or str): names of judges of toxloc, as a list or separated by commas. By default the
        default judges of `toxloc evaluate`.
    aggregation (str): "all", "maximum" or "ratio"; see Returns.

Returns:
    A dictionary; each of its values is a dictionary from the name of a judge, or of a combined judgement ("any", "all",
    ...), to

    toxicity: the scores of the texts, from 0 to 1 (only for "all").
    toxic: the verdicts on the texts, true or false (only for "all").
    mean_toxicity: the mean score (only for "all").
    max_toxicity: the highest score (for "all" and "maximum").
    toxicity_ratio: the share of toxic texts (for "all" and "ratio").
"""
PARTS = {
    "all": ("toxicity", "toxic", "mean_toxicity", "max_toxicity", "toxicity_ratio"),
    "maximum": ("max_toxicity",),
    "ratio": ("toxicity_ratio",),
}


class Toxicity(evaluate.Measurement):  # type: ignore[misc]
    """Measurement that scores texts with judges, and combines the judges' verdicts.

    `aggregation` has the values of the measurement `toxicity` on the hub. Here the judges have
    different thresholds.

    Example:
        >>> measurement = evaluate.load(str(FOLDERS["evaluate"]), module_type="measurement")      # doctest: +SKIP
        >>> measurement.compute(predictions=["Good morning"], aggregation="ratio")                # doctest: +SKIP
        {'toxicity_ratio': {'toxloc-guard': 0.0, 'profanity-check': 0.0, 'any': 0.0, 'all': 0.0}}
    """

    _loaded: tuple[Any, list[Any]] | None = None  # the judges of the last call, so that a language model is loaded once

    def _info(self) -> Any:
        return evaluate.MeasurementInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def compute(
        self,
        *,
        predictions: Any = None,
        judges: Any = None,
        aggregation: Literal["all", "maximum", "ratio"] = "all",
        **options: Any,
    ) -> dict[str, dict[str, Any]] | None:
        """Score texts; see `inputs_description`."""
        if aggregation not in PARTS:
            raise ToxlocError(f"aggregation={aggregation!r}: choose one of {', '.join(PARTS)}.")
        if self._loaded is None or self._loaded[0] != judges:
            self._loaded = judges, get_judges(judges)
        result: dict[str, dict[str, Any]] | None = super().compute(
            predictions=predictions, aggregation=aggregation, **options
        )
        return result

    def _compute(self, predictions: list[str], aggregation: str) -> dict[str, dict[str, Any]]:
        assert self._loaded is not None
        if not predictions:
            raise ToxlocError("predictions is empty; give at least one text to score.")
        judgements = judge([[text] for text in predictions], self._loaded[1])
        figures: dict[str, dict[str, Any]] = {part: {} for part in PARTS[aggregation]}
        for name, judgement in judgements.items():
            scores, toxic = judgement.scores[:, 0], judgement.toxic[:, 0]
            of_judge = {
                "toxicity": scores.tolist(),
                "toxic": toxic.tolist(),
                "mean_toxicity": float(scores.mean()),
                "max_toxicity": float(scores.max()),
                "toxicity_ratio": float(toxic.mean()),
            }
            for part, by_name in figures.items():
                by_name[name] = of_judge[part]
        return figures
