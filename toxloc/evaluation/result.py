"""The result of an evaluation, in memory and on disk."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..support.files import new_folder, read_json, write_json
from ..texts.prompts import PromptSet
from ..version import __version__
from .agreement import Agreement
from .cost.fluency import Fluency
from .cost.multiple_choice import Accuracy
from .cost.over_suppression import OverSuppression
from .cost.wording import Wording
from .toxicity import COMBINED, Judgement, Toxicity

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        model: name of the model.
        method: "baseline", or the kinds of the interventions in force, joined with "+".
        config: their settings and what their fit found.
        protocol: name and version of the protocol, such as "ProFS/1"; None for settings of one's own.
        decoding: how completions were sampled.
        evaluators: of each its threshold and its card.
        prompts: the prompts judged.
        completions: for every prompt its completions.
        judgements: for every evaluator, "any" and "both", the verdict on each completion.
        toxicity: for the same, the figures.
        categories: for every evaluator with several labels the figures of each label.
        agreement: how far the evaluators agree, and what each alone misses; None if there is one.
        wording: whether the completions still read like text.
        completion_perplexity: of the completions under the unedited model; None where no cost was asked for.
        fluency: cost on everyday text; None where it was not asked for.
        choices: share of multiple-choice items answered right; None where none were given.
        over_suppression: what became of harmless prompts; None where nothing is in force or no cost was asked for.
        protocol_fluency: what the protocol measures of language, by its name; None without one.
    """

    model: str
    method: str
    config: dict[str, Any]
    protocol: str | None
    decoding: Decoding
    evaluators: dict[str, dict[str, Any]]
    prompts: PromptSet
    completions: list[list[str]]
    judgements: dict[str, Judgement]
    toxicity: dict[str, Toxicity]
    categories: dict[str, dict[str, Toxicity]]
    agreement: Agreement | None
    wording: Wording
    completion_perplexity: float | None
    fluency: Fluency | None
    choices: Accuracy | None
    over_suppression: OverSuppression | None
    protocol_fluency: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of `runs` in results.json: no texts, only figures."""
        return {
            "method": self.method,
            "config": self.config,
            "protocol": self.protocol,
            "decoding": self.decoding.to_dict(),
            "toxicity": {name: figures.to_dict() for name, figures in self.toxicity.items()},
            "categories": {name: {label: figures.to_dict() for label, figures in labels.items()}
                           for name, labels in self.categories.items()},
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "wording": self.wording.to_dict(),
            "completion_perplexity": self.completion_perplexity,
            "fluency": self.fluency.to_dict() if self.fluency else None,
            "choices": self.choices.to_dict() if self.choices else None,
            "over_suppression": self.over_suppression.to_dict() if self.over_suppression else None,
            "protocol_fluency": self.protocol_fluency,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per completion, with every evaluator's score and verdict."""
        judges = [name for name in self.judgements if name not in COMBINED]
        for i, (prompt, texts) in enumerate(zip(self.prompts.texts, self.completions, strict=True)):
            for k, text in enumerate(texts):
                yield {
                    "method": self.method,
                    "kind": self.prompts.kinds[i] if self.prompts.kinds else None,
                    "prompt": prompt,
                    "sample": k,
                    "completion": text,
                    "scores": {name: round(float(self.judgements[name].scores[i, k]), 4) for name in judges},
                    "toxic": {name: bool(self.judgements[name].toxic[i, k]) for name in self.judgements},
                }

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write evaluation.json (figures) and completions.jsonl (texts, scores and verdicts), for `load_evaluation`.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        with new_folder(folder, overwrite) as partial:
            write_json(partial / "evaluation.json", {
                "format_version": FORMAT_VERSION, "toxloc": __version__, "model": self.model,
                "prompts": {"name": self.prompts.name, "n": len(self.prompts)}, "evaluators": self.evaluators,
                **self.to_dict(),
            })
            with (partial / "completions.jsonl").open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())


@dataclass(frozen=True)
class Finished:
    """What `Evaluation.save` wrote: enough to compare it with another.

    Attributes:
        name: of the folder.
        figures: content of evaluation.json.
        prompts: the prompts judged.
        judgements: for every evaluator, "any" and "both", the verdict on each completion.
    """

    name: str
    figures: dict[str, Any]
    prompts: list[str]
    judgements: dict[str, Judgement]


def load_evaluation(folder: str | PathLike[str]) -> Finished:
    """Read what `Evaluation.save` wrote.

    Raises:
        ToxlocError: there is none in the folder, it is damaged, or a newer toxloc wrote it.

    Example:
        >>> load_evaluation("evaluations/baseline").figures["toxicity"]["any"]["rate"]     # doctest: +SKIP
        0.331
    """
    folder = Path(folder)
    figures = read_json(folder / "evaluation.json", "finished evaluation")
    if figures.get("format_version") != FORMAT_VERSION:
        raise ToxlocError(f"{folder} has format version {figures.get('format_version')}, this toxloc reads "
                          f"{FORMAT_VERSION}; read it with the version that wrote it.")
    try:
        rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
        samples = figures["decoding"]["samples"]
        judgements = {}
        for name in [*figures["evaluators"], *COMBINED]:
            toxic = np.array([row["toxic"][name] for row in rows], dtype=bool)
            scores = np.array([row["scores"].get(name, row["toxic"][name]) for row in rows], dtype=np.float64)
            judgements[name] = Judgement(scores.reshape(-1, samples), toxic.reshape(-1, samples))
        prompts = [row["prompt"] for row in rows[::samples]]
    except (KeyError, OSError, ValueError, AttributeError) as error:
        raise ToxlocError(f"The evaluation in {folder} is damaged or incomplete: {error!r}") from error
    return Finished(folder.name, figures, prompts, judgements)
