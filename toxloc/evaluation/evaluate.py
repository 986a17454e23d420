"""Judge a model in its current state: sample completions, let evaluators score them, measure the cost in language."""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from ..errors import ToxlocError
from ..generation.generate import check_decoding, generate
from ..models.loaded import LoadedModel
from ..support.settings import signature_from
from ..texts.loading import load_neutral
from ..texts.neutral import AnyNeutral, measured_texts
from ..texts.prompts import PromptSet
from .agreement import agreement
from .cost.fluency import measure_fluency
from .cost.multiple_choice import Choice, accuracy
from .cost.over_suppression import over_suppression
from .cost.perplexity import completion_perplexity
from .cost.protocol_fluency import protocol_fluency
from .cost.wording import wording
from .evaluators.base import Evaluator
from .evaluators.registry import get_evaluators
from .judging import judge, judge_labels
from .protocols import Protocol
from .result import Evaluation
from .settings import EvaluationSettings, usual_evaluators
from .toxicity import Toxicity, toxicity


@signature_from(EvaluationSettings)
def evaluate(
    lm: LoadedModel,
    prompts: PromptSet,
    evaluators: Sequence[str | Evaluator] | None = None,
    *,
    settings: EvaluationSettings | None = None,
    protocol: str | Protocol | None = None,
    neutral: AnyNeutral | None = None,
    choices: Sequence[Choice] | None = None,
    journal: str | PathLike[str] | None = None,
    **options: Any,
) -> Evaluation:
    """Sample completions, judge them, and measure the cost in language quality on everyday text.

    Only completions are judged, never the prompts. The cost is perplexity, KL to the unedited model,
    over-suppression, and what a protocol measures.

    Args:
        lm: the model with its applied interventions (`with e.applied(lm): evaluate(lm, ...)`).
        prompts: texts to complete. Under a protocol, what `Protocol.load` returns.
        evaluators: names, or evaluators that you made; by default those of the settings, else the protocol's, else the
            two that come with toxloc.
        settings: an `EvaluationSettings`; the options below change single fields of it.
        protocol: a published protocol, by name; it fixes the decoding and adds its measure of fluency.
        neutral: everyday text to measure the cost on: neutral text, of which the part `check` is read, or a list of
            texts; by default the built-in text.
        choices: multiple-choice items to answer, from `toxloc.evaluation.cost.multiple_choice.load_choices`.
        journal: file to keep completions in while they are sampled, so that a killed evaluation can be continued; see
            `generate`.
        samples: completions per prompt, 5 by default.
        seed: seed for the sampling (see `generate`) and the bootstrap.
        max_new_tokens: length of a completion in tokens, 20 by default.
        top_p: nucleus sampling, 0.9 by default.
        temperature: temperature of the sampling, 1 by default.
        repetition_penalty: see `generate`; 1 by default, which is no penalty.
        fluency: measure the cost in language quality; multiple choice is measured whenever items are given.

    Raises:
        ToxlocError: unknown evaluators or protocol, or settings that are out of range or not the protocol's.

    Example:
        >>> toxloc.evaluate(lm, toxloc.load_prompts(), samples=5).toxicity["any"].rate     # doctest: +SKIP
        0.24
    """
    # Settings: everything that can be wrong is checked before the model is run.
    if isinstance(protocol, str):
        options["protocol"] = protocol
    chosen = EvaluationSettings.of(settings, **options)
    known = protocol if isinstance(protocol, Protocol) else chosen.known_protocol
    decoding = chosen.decoding(known)
    check_decoding(lm, decoding)
    judges = get_evaluators(evaluators or chosen.evaluators or usual_evaluators(known))
    everyday = _everyday_text(neutral) if chosen.fluency else []

    # Cost on everyday text.
    cost = measure_fluency(lm, everyday) if chosen.fluency else None

    # Completions.
    completions = generate(lm, prompts.texts, **decoding.to_dict(), seed=chosen.seed, journal=journal)

    # Judgements.
    judgements = judge(completions, judges, all_labels=known is not None and known.all_labels)

    # Figures of the completions.
    rates = {name: toxicity(judgement, chosen.seed) for name, judgement in judgements.items()}
    categories = {one.name: _categories(completions, one, chosen.seed) for one in judges if len(one.labels) > 1}
    agreed = agreement(judgements, chosen.seed) if len(judges) > 1 else None
    perplexity = completion_perplexity(lm, prompts.texts, completions) if chosen.fluency else math.nan
    of_protocol = protocol_fluency(lm, known.fluency, everyday, perplexity, cost) if known and cost else None
    suppressed = over_suppression(lm, seed=chosen.seed) if chosen.fluency and lm.interventions else None
    answered = accuracy(lm, choices) if choices else None

    return Evaluation(
        model=lm.name,
        method="+".join(one.kind for one in lm.interventions) or "baseline",
        config=_config(lm),
        protocol=known.id if known else None,
        decoding=decoding,
        evaluators={one.name: one.about() for one in judges},
        prompts=prompts,
        completions=completions,
        judgements=judgements,
        toxicity=rates,
        categories=categories,
        agreement=agreed,
        wording=wording(completions),
        completion_perplexity=perplexity if math.isfinite(perplexity) else None,
        fluency=cost,
        choices=answered,
        over_suppression=suppressed,
        protocol_fluency=of_protocol,
    )


def _everyday_text(neutral: AnyNeutral | None) -> Sequence[str]:
    if neutral is None:
        return load_neutral().check
    if not neutral:
        raise ToxlocError("There are no neutral texts to measure the cost on; leave neutral= out for the built-in.")
    return measured_texts(neutral)


def _categories(completions: list[list[str]], evaluator: Evaluator, seed: int) -> dict[str, Toxicity]:
    """Figures of each label of an evaluator."""
    return {label: toxicity(judgement, seed) for label, judgement in judge_labels(completions, evaluator).items()}


def _config(lm: LoadedModel) -> dict[str, Any]:
    """Settings of the applied intervention; by kind, if several are applied."""
    if len(lm.interventions) > 1:
        return {one.kind: one.describe() for one in lm.interventions}
    return lm.interventions[0].describe() if lm.interventions else {}
