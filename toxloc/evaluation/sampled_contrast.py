"""A contrast set out of a model's own mouth: no dataset needed, and texts of exactly the kind the model writes."""

from collections.abc import Sequence

import numpy as np

from ..errors import ToxlocError
from ..generation.generate import generate
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet
from ..texts.layouts import NEUTRAL_TO
from ..texts.loading import load_prompts
from ..texts.prompts import PROVOCATIVE, PromptSet
from .evaluators.base import Evaluator
from .evaluators.registry import DEFAULT, get_evaluators
from .judging import judge

FEWEST = 8  # pairs; with fewer there is nothing to localize with
Sampled = tuple[int, str]  # number of the prompt, completion


def contrast_from_model(lm: LoadedModel, prompts: PromptSet | None = None,
                        evaluators: Sequence[str | Evaluator] = DEFAULT, n: int = 200, *, samples: int = 4,
                        max_rounds: int = 5, max_new_tokens: int = 20, seed: int = 0) -> ContrastSet:
    """Sample from a model and keep what all evaluators call toxic and what all call neutral. See `from_model`."""
    if n < FEWEST:
        raise ToxlocError(f"n={n} pairs are too few to localize with; ask for {FEWEST} or more.")
    judges = get_evaluators(evaluators)
    if prompts is None:
        prompts = load_prompts().only(PROVOCATIVE)
        assert prompts is not None
    toxic: dict[Sampled, None] = {}
    neutral: dict[Sampled, None] = {}
    rounds = 0
    while rounds < max_rounds and min(len(toxic), len(neutral)) < n:
        completions = generate(lm, prompts.texts, samples=samples, max_new_tokens=max_new_tokens,
                               seed=seed + 7919 * rounds)  # other completions in every round
        rounds += 1
        verdicts = judge(completions, judges)
        for i, several in enumerate(completions):
            for k, text in enumerate(several):
                if not text.strip():
                    continue
                if verdicts["both"].toxic[i, k]:
                    toxic[i, text] = None
                elif all(verdicts[e.name].scores[i, k] < min(NEUTRAL_TO, e.threshold) for e in judges):
                    neutral[i, text] = None
    pairs = _matched(list(toxic), list(neutral), n)
    if len(pairs) < FEWEST:
        names = ", ".join(e.name for e in judges)
        raise ToxlocError(
            f"Of {rounds * samples * len(prompts)} completions of {lm.name}, {names} agreed on {len(toxic)} toxic and "
            f"{len(neutral)} neutral ones, which is too few; give prompts that provoke more, fewer evaluators, or more "
            "rounds (max_rounds=)."
        )
    return ContrastSet([prompts.texts[i] + text for (i, text), _ in pairs],
                       [prompts.texts[i] + text for _, (i, text) in pairs], f"sampled from {lm.name}", paired=True)


def _matched(toxic: list[Sampled], neutral: list[Sampled], n: int) -> list[tuple[Sampled, Sampled]]:
    """Pair each toxic completion with an unused neutral one: of the same prompt if there is one, of nearest length."""
    pairs: list[tuple[Sampled, Sampled]] = []
    free = list(neutral)
    # First the prompts that both sides share, so that no pair takes another's natural partner.
    shared = {i for i, _ in neutral}
    for one in sorted(toxic, key=lambda sampled: sampled[0] not in shared)[:n]:
        if not free:
            break
        costs = [(other[0] != one[0], abs(len(other[1]) - len(one[1]))) for other in free]
        pairs.append((one, free.pop(int(np.lexsort(np.array(costs).T[::-1])[0]))))
    return pairs
