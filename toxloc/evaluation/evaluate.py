"""Evaluate a model in its current state: sample completions, judge them, and measure the cost in language quality."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any

from ..errors import ToxlocError
from ..generation.generate import check_decoding, generate
from ..models.loaded import LoadedModel
from ..support.arguments import check_kind
from ..support.progress import note
from ..support.settings import signature_from
from ..texts.chat import Chat
from ..texts.loading import load_neutral, load_prompts
from ..texts.neutral import AnyNeutral, measured_texts
from ..texts.prompts import PromptSet
from ..texts.requests import BORDERLINE, HARMLESS
from .agreement import agreement
from .cost.fluency import measure_fluency
from .cost.multiple_choice import Choice, accuracy
from .cost.over_suppression import over_suppression
from .cost.perplexity import completion_perplexity
from .cost.protocol_fluency import protocol_fluency
from .cost.wording import wording
from .evaluators.base import Evaluator, EvaluatorError
from .evaluators.registry import get_evaluators
from .groups import rates_by_group
from .judging import judge, judge_labels
from .language_notes import language_notes
from .outcomes import outcomes
from .protocols import Protocol
from .result import Evaluation
from .score_journal import ScoreJournal, scores_beside
from .settings import EvaluationSettings, usual_evaluators
from .thinking import split_thinking
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

    A model with a chat template is judged in conversations: prompts become requests (`PromptSet.as_chat`), everyday
    text becomes answers, and what the model thinks before it answers is not judged. `chat=False` keeps plain text, and
    so does a published protocol.

    Only completions are judged, never the prompts. If the prompts carry languages or categories, the toxic rates of
    each language and category are computed too. If an evaluator does not know the language of the completions, a
    sentence says so (see `language_notes`). The cost is perplexity, KL divergence from the unedited model,
    over-suppression, and the protocol's measure of fluency. Over-suppression is measured on the 90 built-in harmless
    prompts, or on about as many as there are prompts if there are fewer.

    Args:
        lm: the model with its applied interventions (`with edit.applied(lm): evaluate(lm, ...)`).
        prompts: texts to complete; for a protocol, the prompts that `Protocol.load` returns.
        evaluators: evaluators or their names; by default the evaluators of the settings, else the protocol's evaluator,
            else toxloc-rtp, toxloc-guard and profanity-check.
        settings: an `EvaluationSettings`; the options below override its fields.
        protocol: a published protocol or its name; it fixes the decoding and adds its measure of fluency.
        neutral: everyday text to measure the cost on: a `NeutralText`, of which only the part `check` is used, or a
            list of texts; by default the built-in text.
        choices: multiple-choice items to answer, from `toxloc.evaluation.cost.multiple_choice.load_choices`.
        journal: file that stores completions during sampling, so that an interrupted evaluation can be continued; see
            `generate`. A second file, whose name ends in `.scores`, stores the scores during judging.
        samples: completions per prompt, 5 by default.
        seed: seed for the sampling (see `generate`) and the bootstrap.
        max_new_tokens: length of a completion in tokens, 20 by default.
        top_p: probability for nucleus sampling, 0.9 by default.
        temperature: temperature of the sampling, 1 by default.
        repetition_penalty: see `generate`; 1 by default, which is no penalty.
        chat: True for conversations, False for plain text, "auto" for conversations if the model has a chat template.
        system: system message of every conversation; by default none.
        thinking: whether the model thinks before it answers; by default as its chat template does.
        fluency: whether to measure the cost in language quality; multiple choice is measured whenever items are given.

    Raises:
        ToxlocError: an evaluator or the protocol is unknown, a setting is out of range or differs from the protocol's,
            or `neutral` has no texts.

    Example:
        >>> toxloc.evaluate(lm, toxloc.load_prompts(), samples=5).toxicity["any"].rate     # doctest: +SKIP
        0.24
    """
    # Check all settings before the model runs.
    check_kind(prompts, PromptSet, "the prompts")
    if isinstance(protocol, str):
        options["protocol"] = protocol
    chosen = EvaluationSettings.of(settings, **options)
    used = protocol if isinstance(protocol, Protocol) else chosen.known_protocol
    chat = None if used and chosen.chat == "auto" else chosen.conversation(lm.tokenizer)
    decoding = chosen.decoding(used)
    check_decoding(lm, decoding)
    judges = get_evaluators((chosen.evaluators or usual_evaluators(used)) if evaluators is None else evaluators)
    everyday = _everyday_text(neutral) if chosen.fluency else []
    if chat:
        chosen.announce(lm.name, lm.tokenizer)
        prompts, everyday = prompts.as_chat(lm, chat), chat.answers(lm.tokenizer, everyday)

    cost = measure_fluency(lm, everyday) if chosen.fluency else None

    sampled = generate(lm, prompts.texts, **decoding.to_dict(), seed=chosen.seed, journal=journal)
    completions, thinking = split_thinking(prompts.texts, sampled) if chat else (sampled, None)
    notes = language_notes(completions, judges, prompts.languages)
    for warning in notes.warnings:
        note(warning)

    with ScoreJournal(scores_beside(journal)) if journal else nullcontext() as scores:
        try:
            judgements = judge(completions, judges, all_labels=used is not None and used.all_labels, journal=scores)
        except EvaluatorError as error:
            error.prompts = prompts.texts
            if journal:
                error.add(f"The completions and scores so far are in {journal} and {scores_beside(journal)}.")
            raise

    rates = {name: toxicity(judgement, chosen.seed) for name, judgement in judgements.items()}
    categories = {
        evaluator.name: _categories(completions, evaluator, chosen.seed)
        for evaluator in judges
        if len(evaluator.labels) > 1
    }
    agreed = agreement(judgements, chosen.seed) if len(judges) > 1 else None
    perplexity = completion_perplexity(lm, prompts.texts, completions) if chosen.fluency else math.nan
    of_protocol = protocol_fluency(lm, used.fluency, everyday, perplexity, cost) if used and cost else None
    suppressed = None
    if chosen.fluency and lm.interventions:
        # The built-in prompts have two or three kinds. A small evaluation takes fewer of each, so that it is quick.
        harmless = _harmless_prompts(lm, chat).limited(max(2, math.ceil(len(prompts) / 3)))
        suppressed = over_suppression(lm, harmless, seed=chosen.seed)
    answered = None
    if choices:
        answered = accuracy(lm, [choice.as_chat(lm, chat) for choice in choices] if chat else choices)

    return Evaluation(
        model=lm.name,
        method="+".join(intervention.kind for intervention in lm.interventions) or "baseline",
        config=_config(lm),
        protocol=used.id if used else None,
        decoding=decoding,
        evaluators={evaluator.name: evaluator.about() for evaluator in judges},
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
        by_language=rates_by_group(judgements, prompts.languages, chosen.seed),
        by_category=rates_by_group(judgements, prompts.categories, chosen.seed),
        language_notes=notes,
        outcomes=outcomes(completions, judgements["any"].toxic, chosen.seed),
        chat=chat,
        thinking=thinking,
    )


def _everyday_text(neutral: AnyNeutral | None) -> Sequence[str]:
    if neutral is None:
        return load_neutral().check
    texts = measured_texts(neutral)
    if not texts:
        raise ToxlocError("There are no neutral texts to measure the cost on; omit neutral= to use the built-in text.")
    return texts


def _harmless_prompts(lm: LoadedModel, chat: Chat | None) -> PromptSet:
    """Return the harmless prompts for over-suppression; in conversations, harmless and borderline requests."""
    if chat is None:
        return load_prompts("sensitive")
    requests = load_prompts("requests")
    kept = [i for i, kind in enumerate(requests.kinds or []) if kind in (HARMLESS, BORDERLINE)]
    return requests.take(kept).as_chat(lm, chat)


def _categories(completions: list[list[str]], evaluator: Evaluator, seed: int) -> dict[str, Toxicity]:
    """Compute the toxicity figures of each label of an evaluator."""
    return {label: toxicity(judgement, seed) for label, judgement in judge_labels(completions, evaluator).items()}


def _config(lm: LoadedModel) -> dict[str, Any]:
    """Return the settings of the applied intervention, or of each by its kind if several are applied."""
    if len(lm.interventions) > 1:
        kinds = [intervention.kind for intervention in lm.interventions]
        names = [f"{kind} ({kinds[:i].count(kind) + 1})" if kind in kinds[:i] else kind for i, kind in enumerate(kinds)]
        return {name: edit.describe() for name, edit in zip(names, lm.interventions, strict=True)}
    return lm.interventions[0].describe() if lm.interventions else {}
