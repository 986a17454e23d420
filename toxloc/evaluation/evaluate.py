"""Judge a model as it is now: sample completions, let every evaluator score them, measure what language costs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..generation.generate import check_decoding, generate
from ..models.loaded import LoadedModel
from ..texts.loading import load_neutral
from ..texts.prompts import PromptSet
from .agreement import agreement
from .cost.fluency import Fluency, measure_fluency
from .cost.multiple_choice import Choice, accuracy
from .cost.over_suppression import over_suppression
from .cost.perplexity import completion_perplexity, nll_per_text, strided_perplexity
from .cost.wording import wording
from .evaluators.base import Evaluator
from .evaluators.registry import DEFAULT, get_evaluators
from .judging import judge, judge_labels
from .protocols import Protocol, get_protocol
from .result import Evaluation
from .toxicity import toxicity


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
        choices: multiple-choice items to answer, from `toxloc.evaluation.cost.multiple_choice.load_choices`.
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
