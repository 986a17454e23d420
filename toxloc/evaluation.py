"""Judge a model as it is now: sample completions, let every evaluator score them, measure what language costs."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .agreement import Agreement, agreement
from .choices import Accuracy, Choice, accuracy
from .errors import ToxlocError
from .evaluators import DEFAULT, Evaluator, get_evaluators
from .files import new_folder, read_json, write_json
from .fluency import Fluency, completion_perplexity, measure_fluency, nll_per_text, strided_perplexity
from .generation import Decoding, check_decoding, generate
from .metrics import COMBINED, Judgement, Toxicity, combine, toxicity
from .model import LoadedModel
from .oversuppression import OverSuppression, over_suppression
from .prompts import PromptSet, load_neutral
from .protocols import Protocol, get_protocol
from .wording import Wording, wording

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


def evaluate(lm: LoadedModel, prompts: PromptSet, evaluators: Sequence[str | Evaluator] | None = None, *,
             protocol: str | Protocol | None = None, samples: int | None = None, seed: int = 0,
             max_new_tokens: int | None = None, top_p: float | None = None, temperature: float | None = None,
             repetition_penalty: float | None = None, neutral: Sequence[str] | None = None,
             choices: Sequence[Choice] | None = None, fluency: bool = True,
             journal: str | PathLike[str] | None = None) -> Evaluation:
    """Sample completions and judge them; measure perplexity, and KL to the unedited model, on everyday text.

    Only completions are judged, never the prompts.

    Args:
        lm: the model with whatever interventions are in force (`with e.applied(lm): evaluate(lm, ...)`).
        prompts: what to complete. Under a protocol, what `Protocol.load` gives.
        evaluators: names, or evaluators of your own; by default those of the protocol, else the two that need nothing.
        protocol: a published way to measure, by name; it fixes the decoding and what else is measured of language.
        samples: completions per prompt, 5 by default.
        seed: see `generate`; also of the bootstrap.
        max_new_tokens: length of a completion in tokens, 20 by default.
        top_p: nucleus of the sampling, .9 by default.
        temperature: of the sampling, 1 by default.
        repetition_penalty: see `generate`; 1, none, by default.
        neutral: texts for the cost; by default the `check` part of the built-in neutral text.
        choices: multiple-choice items to answer, from `toxloc.choices.load_choices`.
        fluency: measure the cost: perplexity, KL, over-suppression, and what a protocol asks for.
        journal: see `generate`.

    Raises:
        ToxlocError: unknown evaluators or protocol, settings out of range or other than the protocol's.

    Example:
        >>> toxloc.evaluate(lm, toxloc.load_prompts()).toxicity["any"].rate     # doctest: +SKIP
        0.24
    """
    known = get_protocol(protocol) if isinstance(protocol, str) else protocol
    decoding = decoding_of(known, samples=samples, max_new_tokens=max_new_tokens, top_p=top_p, temperature=temperature,
                           repetition_penalty=repetition_penalty)
    check_decoding(lm, decoding)
    judges = get_evaluators(evaluators or usual_evaluators(known))
    if fluency and neutral is not None and not neutral:
        raise ToxlocError("There are no neutral texts to measure the cost on; leave neutral= out for the built-in.")
    everyday = (load_neutral().check if neutral is None else neutral) if fluency else []
    cost = measure_fluency(lm, everyday) if fluency else None
    completions = generate(lm, prompts.texts, **decoding.to_dict(), seed=seed, journal=journal)
    judgements = judge(completions, judges, all_labels=known is not None and known.all_labels)
    own = completion_perplexity(lm, prompts.texts, completions) if fluency else math.nan
    return Evaluation(
        model=lm.name, method="+".join(i.kind for i in lm.applied) or "baseline",
        config={i.kind: i.describe() for i in lm.applied} if len(lm.applied) > 1
        else lm.applied[0].describe() if lm.applied else {},
        protocol=known.id if known else None, decoding=decoding,
        evaluators={one.name: one.about() for one in judges},
        prompts=prompts, completions=completions, judgements=judgements,
        toxicity={name: toxicity(judgement, seed) for name, judgement in judgements.items()},
        categories={one.name: {label: toxicity(found, seed) for label, found in judge_labels(completions, one).items()}
                    for one in judges if len(one.labels) > 1},
        agreement=agreement(judgements, seed) if len(judges) > 1 else None, wording=wording(completions),
        completion_perplexity=own if math.isfinite(own) else None, fluency=cost,
        choices=accuracy(lm, choices) if choices else None,
        over_suppression=over_suppression(lm, seed=seed) if fluency and lm.applied else None,
        protocol_fluency=_protocol_fluency(lm, known, everyday, own, cost) if known and cost else None,
    )


def usual_evaluators(protocol: Protocol | None) -> tuple[str, ...]:
    """Name the evaluators of a protocol, or those that need nothing."""
    return (protocol.judge,) if protocol and protocol.judge else DEFAULT


def decoding_of(protocol: Protocol | None, **asked: Any) -> Decoding:
    """Take what is asked for (None: nothing) on top of the defaults, or the protocol's decoding as it is.

    Raises:
        ToxlocError: something else is asked for than the protocol's.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if protocol is None:
        return replace(Decoding(), **asked)
    for name, value in asked.items():
        fixed = getattr(protocol.decoding, name)
        if value != fixed:
            raise ToxlocError(f"{protocol.name} fixes {name}={fixed}; leave {name}={value} out, or the protocol.")
    return protocol.decoding


def _protocol_fluency(lm: LoadedModel, protocol: Protocol, everyday: Sequence[str], own: float,
                      cost: Fluency) -> dict[str, float] | None:
    if protocol.fluency is None:
        return None
    if protocol.fluency == "completions":
        value = own
    elif protocol.fluency == "strided":
        value = strided_perplexity(lm, everyday)
    elif protocol.fluency == "sentences":
        nll, count = nll_per_text(lm, everyday)
        value = float(np.exp(nll / np.maximum(count, 1)).mean())
    else:
        value = cost.perplexity
    return {f"perplexity, {protocol.fluency}": value}


def judge(completions: list[list[str]], evaluators: Sequence[Evaluator], *,
          all_labels: bool = False) -> dict[str, Judgement]:
    """Let every evaluator score completions [n_prompts][samples]; add "any" and "both".

    Args:
        completions: as many of every prompt.
        evaluators: judges.
        all_labels: a completion's score is the highest of all labels, instead of the deciding one.
    """
    found = {}
    for evaluator in evaluators:
        labels = judge_labels(completions, evaluator)
        scores = np.maximum.reduce([one.scores for one in labels.values()]) if all_labels else (
            labels[evaluator.label].scores)
        found[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(found)


def judge_labels(completions: list[list[str]], evaluator: Evaluator) -> dict[str, Judgement]:
    """Let an evaluator score completions [n_prompts][samples], label by label, all at its one threshold."""
    scores = evaluator.score([text for several in completions for text in several])
    by_label = {label: np.asarray(one, dtype=np.float64).reshape(len(completions), -1) for label, one in scores.items()}
    return {label: Judgement(one, one >= evaluator.threshold) for label, one in by_label.items()}
