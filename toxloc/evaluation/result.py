"""The result of an evaluation, in memory and on disk."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..support.files import new_folder, parse_json, read_json, write_json
from ..texts.chat import Chat
from ..texts.prompts import PromptSet
from ..version import __version__
from .agreement import Agreement
from .cost.fluency import Fluency
from .cost.multiple_choice import Accuracy
from .cost.over_suppression import OverSuppression
from .cost.wording import Wording
from .groups import GroupRates
from .judgement import Judgement, combine
from .language_notes import LanguageNotes
from .outcomes import Outcomes
from .thinking import Thinking
from .toxicity import Toxicity
from .verdicts import COMBINED, both_read_as_all

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)  # version 1 uses the name "both" for "all"
FIGURES = ("protocol", "decoding", "evaluators", "toxicity", "wording", "fluency", "completion_perplexity", "choices")


@dataclass(frozen=True)
class Evaluation:
    """Completions of a model, the judgements of every evaluator, and the cost in language quality.

    Attributes:
        model: name of the model.
        method: "baseline", or the kinds of the applied interventions, joined with "+".
        config: settings of the applied interventions and the measurements made when they were fitted.
        protocol: name and version of the protocol, such as "ProFS/1"; None if there is none.
        decoding: decoding options of the completions.
        evaluators: threshold and card of each evaluator.
        prompts: the prompts.
        completions: the completions of each prompt.
        judgements: scores and verdicts on every completion, by name of the evaluator or of the combined judgement.
        toxicity: toxicity figures, for the same names.
        categories: toxicity figures of each label, for every evaluator with several labels.
        agreement: agreement between the evaluators, and the share of toxic completions that each evaluator misses; None
            if there is only one evaluator.
        wording: length, variety and repetition of the completions, to see whether they still read like text.
        completion_perplexity: perplexity of the completions under the unedited model; None if it is not finite or the
            cost was not measured.
        fluency: cost on everyday text; None if it was not measured.
        choices: share of multiple-choice items answered correctly; None if no items were given.
        over_suppression: changes in the completions of harmless prompts; None if no intervention is applied or the cost
            was not measured.
        protocol_fluency: the protocol's measure of fluency, by its name; None if there is no protocol, it has no such
            measure, or the cost was not measured.
        by_language: toxic rate of the prompts of each language, for the names of `toxicity`; None if the prompts carry
            no languages.
        by_category: toxic rate of the prompts of each category, for the same names; None if the prompts carry no
            categories.
        language_notes: languages of the completions, and warnings of evaluators that do not know them.
        outcomes: share of the completions that are toxic, refusals, harmless answers, or broken.
        chat: how the texts became conversations; None for plain text.
        thinking: what the model thought before it answered, which is not part of `completions`; None if it did not.
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
    by_language: GroupRates | None
    by_category: GroupRates | None
    language_notes: LanguageNotes
    outcomes: Outcomes
    chat: Chat | None = None
    thinking: Thinking | None = None

    @property
    def name(self) -> str:
        """Model and method, such as "toxloc-tiny, meow2x"; a loaded evaluation has the name of its folder instead."""
        return f"{self.model}, {self.method}"

    @property
    def figures(self) -> dict[str, Any]:
        """Content of evaluation.json: the figures and how they were measured, without texts."""
        return {
            "format_version": FORMAT_VERSION,
            "toxloc": __version__,
            "model": self.model,
            "prompts": {"name": self.prompts.name, "n": len(self.prompts)},
            "evaluators": self.evaluators,
            **self.to_dict(),
        }

    def finished(self) -> "Finished":
        """Return the evaluation as `load_evaluation` returns it after `save`, but with unrounded scores."""
        return Finished(self.name, self.figures, self.prompts.texts, self.judgements)

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of `runs` in results.json: the figures, without texts."""
        return {
            "method": self.method,
            "config": self.config,
            "protocol": self.protocol,
            "decoding": self.decoding.to_dict(),
            "toxicity": {name: figures.to_dict() for name, figures in self.toxicity.items()},
            "categories": {
                name: {label: figures.to_dict() for label, figures in labels.items()}
                for name, labels in self.categories.items()
            },
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "wording": self.wording.to_dict(),
            "completion_perplexity": self.completion_perplexity,
            "fluency": self.fluency.to_dict() if self.fluency else None,
            "choices": self.choices.to_dict() if self.choices else None,
            "over_suppression": self.over_suppression.to_dict() if self.over_suppression else None,
            "protocol_fluency": self.protocol_fluency,
            "by_language": _group_dicts(self.by_language),
            "by_category": _group_dicts(self.by_category),
            "language_notes": self.language_notes.to_dict(),
            "outcomes": dict(self.outcomes),
            "outcomes_ci": {name: list(interval) for name, interval in self.outcomes.ci.items()},
            "chat": asdict(self.chat) if self.chat else None,
            "thinking": self.thinking.to_dict() if self.thinking else None,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per completion, with every evaluator's score and verdict."""
        judges = [name for name in self.judgements if name not in COMBINED]
        for i, (prompt, texts) in enumerate(zip(self.prompts.texts, self.completions, strict=True)):
            for k, text in enumerate(texts):
                yield {
                    "method": self.method,
                    "kind": self.prompts.kinds[i] if self.prompts.kinds else None,
                    "language": self.prompts.languages[i] if self.prompts.languages else None,
                    "category": self.prompts.categories[i] if self.prompts.categories else None,
                    "prompt": prompt,
                    "sample": k,
                    "completion": text,
                    "outcome": self.outcomes.of_each[i][k],
                    **({"thinking": self.thinking.texts[i][k]} if self.thinking else {}),
                    "scores": {name: round(float(self.judgements[name].scores[i, k]), 4) for name in judges},
                    "toxic": {name: bool(self.judgements[name].toxic[i, k]) for name in self.judgements},
                }

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write evaluation.json (figures) and completions.jsonl (texts, scores and verdicts); see `load_evaluation`.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is False) or cannot be written.
        """
        with new_folder(folder, overwrite) as partial:
            write_json(partial / "evaluation.json", self.figures)
            with (partial / "completions.jsonl").open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())


def _group_dicts(rates: GroupRates | None) -> dict[str, dict[str, Any]] | None:
    if rates is None:
        return None
    return {group: {name: rate.to_dict() for name, rate in of_group.items()} for group, of_group in rates.items()}


@dataclass(frozen=True)
class Finished:
    """A saved evaluation, with everything that `compare` needs.

    Attributes:
        name: name of the folder; model and method if the evaluation was not saved.
        figures: content of evaluation.json.
        prompts: texts of the prompts.
        judgements: scores and verdicts on every completion, by name of the evaluator or of the combined judgement.
    """

    name: str
    figures: dict[str, Any]
    prompts: list[str]
    judgements: dict[str, Judgement]


def load_evaluation(folder: str | PathLike[str]) -> Finished:
    """Read an evaluation that `Evaluation.save` wrote.

    Older versions of toxloc wrote the combined judgement "all" as "both"; it is read as "all".

    Raises:
        ToxlocError: the folder contains no evaluation, the evaluation is damaged, or a newer toxloc wrote it.

    Example:
        >>> load_evaluation("evaluations/baseline").figures["toxicity"]["any"]["rate"]     # doctest: +SKIP
        0.331
    """
    folder = Path(folder)
    figures = read_json(folder / "evaluation.json", "finished evaluation")
    if figures.get("format_version") not in READABLE:
        raise ToxlocError(
            f"{folder} has format version {figures.get('format_version')}, this toxloc reads "
            f"{' and '.join(map(str, READABLE))}; read it with the version that wrote it."
        )
    try:
        # Not splitlines, which also splits at characters such as U+2028 that JSON strings may contain.
        lines = (folder / "completions.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
        rows = [parse_json(line) for line in lines]
        if figures["format_version"] == 1:
            figures, rows = both_read_as_all(figures), both_read_as_all(rows)
        samples = figures["decoding"]["samples"]
        judgements = {}
        for name in figures["evaluators"]:
            toxic = np.array([row["toxic"][name] for row in rows], dtype=bool)
            scores = np.array([row["scores"][name] for row in rows], dtype=np.float64)
            if not (scores.size and ((scores >= 0) & (scores <= 1)).all()):
                raise ValueError(f"{name} has scores outside 0 to 1")
            judgements[name] = Judgement(scores.reshape(-1, samples), toxic.reshape(-1, samples))
        prompts = [row["prompt"] for row in rows[::samples]]
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("a prompt is not text")
        for needed in FIGURES:
            _ = figures[needed]
        for card in figures["evaluators"].values():
            float(card["threshold"])
    except (KeyError, OSError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ToxlocError(
            f"The evaluation in {folder} is damaged or incomplete ({error!r}); evaluate the model again."
        ) from error
    return Finished(folder.name, figures, prompts, combine(judgements))
