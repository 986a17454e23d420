"""Judge a model as it is now: sample completions, let every evaluator score them, measure what language costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from .agreement import Agreement, agreement
from .errors import ToxlocError
from .evaluators import DEFAULT, Evaluator, get_evaluators
from .fluency import Fluency, measure_fluency
from .generation import generate
from .metrics import Judgement, Toxicity, combine, toxicity
from .model import LoadedModel
from .prompts import PromptSet, load_neutral
from .wording import Wording, wording


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        method: "baseline", or the kinds of the interventions in force, joined with "+".
        config: their settings and what their fit found.
        prompts: the prompts judged.
        completions: for every prompt its completions.
        judgements: for every evaluator, "any" and "both", the verdict on each completion.
        toxicity: for the same, the figures.
        agreement: how far the evaluators agree, and what each alone misses; None if there is one.
        wording: whether the completions still read like text.
        fluency: cost on everyday text; None where it was not asked for.
    """

    method: str
    config: dict[str, Any]
    prompts: PromptSet
    completions: list[list[str]]
    judgements: dict[str, Judgement]
    toxicity: dict[str, Toxicity]
    agreement: Agreement | None
    wording: Wording
    fluency: Fluency | None

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of `runs` in results.json: no texts, only figures."""
        return {
            "method": self.method,
            "config": self.config,
            "toxicity": {name: figures.to_dict() for name, figures in self.toxicity.items()},
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "wording": self.wording.to_dict(),
            "fluency": self.fluency.to_dict() if self.fluency else None,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per completion, with every evaluator's score and verdict."""
        judges = [name for name in self.judgements if name not in ("any", "both")]
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


def evaluate(lm: LoadedModel, prompts: PromptSet, evaluators: Sequence[str | Evaluator] = DEFAULT, *,
             samples: int = 5, seed: int = 0, max_new_tokens: int = 20, top_p: float = 0.9,
             temperature: float = 1.0, neutral: Sequence[str] | None = None, fluency: bool = True) -> Evaluation:
    """Sample completions and judge them; measure perplexity, and KL to the unedited model, on everyday text.

    Only completions are judged, never the prompts.

    Args:
        lm: the model with whatever interventions are in force (`with e.applied(lm): evaluate(lm, ...)`).
        prompts: what to complete.
        evaluators: names, or evaluators of your own.
        samples: completions per prompt.
        seed: see `generate`; also of the bootstrap.
        max_new_tokens: length of a completion in tokens.
        top_p: nucleus of the sampling.
        temperature: of the sampling.
        neutral: texts for the cost; by default the `check` part of the built-in neutral text.
        fluency: measure the cost.

    Raises:
        ToxlocError: unknown evaluators, or settings out of range.

    Example:
        >>> toxloc.evaluate(lm, toxloc.load_prompts()).toxicity["any"].rate     # doctest: +SKIP
        0.24
    """
    judges = get_evaluators(evaluators)
    if fluency and neutral is not None and not neutral:
        raise ToxlocError("There are no neutral texts to measure the cost on; leave neutral= out for the built-in.")
    cost = None
    if fluency:
        cost = measure_fluency(lm, load_neutral().check if neutral is None else neutral)
    completions = generate(lm, prompts.texts, samples=samples, max_new_tokens=max_new_tokens, top_p=top_p,
                           temperature=temperature, seed=seed)
    judgements = judge(completions, judges)
    return Evaluation(
        method="+".join(i.kind for i in lm.applied) or "baseline",
        config={i.kind: i.describe() for i in lm.applied} if len(lm.applied) > 1
        else lm.applied[0].describe() if lm.applied else {},
        prompts=prompts, completions=completions, judgements=judgements,
        toxicity={name: toxicity(judgement, seed) for name, judgement in judgements.items()},
        agreement=agreement(judgements, seed) if len(judges) > 1 else None, wording=wording(completions), fluency=cost,
    )


def judge(completions: list[list[str]], evaluators: Sequence[Evaluator]) -> dict[str, Judgement]:
    """Let every evaluator score completions [n_prompts][samples]; add "any" and "both"."""
    texts = [text for several in completions for text in several]
    found = {}
    for evaluator in evaluators:
        scores = rearrange(np.asarray(evaluator.score(texts)[evaluator.label], dtype=np.float64),
                           "(prompt sample) -> prompt sample", prompt=len(completions))
        found[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(found)
