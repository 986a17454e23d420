"""A contrast set sampled from the model itself: no dataset is needed, and the texts are of the kind it writes."""

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

FEWEST = 8  # pairs; fewer are too few to localize with
Sampled = tuple[int, str]  # number of the prompt, completion


def contrast_from_model(
    lm: LoadedModel,
    prompts: PromptSet | None = None,
    evaluators: Sequence[str | Evaluator] = DEFAULT,
    n: int = 200,
    *,
    samples: int = 4,
    max_rounds: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
) -> ContrastSet:
    """Sample a contrast set from a model, so that it can be localized without a dataset.

    Completions that all evaluators call toxic are paired with completions that all call neutral: if possible with one
    of the same prompt, and of the nearest length. A text is a prompt with its completion.

    Args:
        lm: the model.
        prompts: texts to complete; by default the built-in provocative prompts.
        evaluators: names of evaluators, or evaluators; two or more are best, since a text must convince all of them. A
            text is toxic if its score is at least the evaluator's threshold, neutral if its score is below 0.25 and
            below the threshold.
        n: number of pairs to sample. The set has fewer if `max_rounds` rounds do not yield as many.
        samples: completions per prompt in a round.
        max_rounds: largest number of rounds of sampling.
        max_new_tokens: length of a completion in tokens.
        seed: seed for the sampling; every round uses another seed that follows from it.

    Returns:
        A paired contrast set; completions of one prompt that are the same are used once.

    Raises:
        ToxlocError: fewer than 8 pairs are asked for, or were sampled; or what `get_evaluators` raises.

    Example:
        >>> pairs = contrast_from_model(toxloc.load_model(), n=100)     # doctest: +SKIP
        >>> len(pairs.toxic)                                            # doctest: +SKIP
        100
    """
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
        completions = generate(
            lm, prompts.texts, samples=samples, max_new_tokens=max_new_tokens, seed=seed + 7919 * rounds
        )  # other completions in every round
        rounds += 1
        verdicts = judge(completions, judges)
        for i, several in enumerate(completions):
            for k, text in enumerate(several):
                if not text.strip():
                    continue
                if verdicts["all"].toxic[i, k]:
                    toxic[i, text] = None
                elif all(verdicts[e.name].scores[i, k] < min(NEUTRAL_TO, e.threshold) for e in judges):
                    neutral[i, text] = None
    pairs = match_pairs(list(toxic), list(neutral), n)
    if len(pairs) < FEWEST:
        names = ", ".join(e.name for e in judges)
        raise ToxlocError(
            f"Of {rounds * samples * len(prompts)} completions of {lm.name}, {names} agreed on {len(toxic)} toxic and "
            f"{len(neutral)} neutral ones, which is too few; give prompts that provoke more, fewer evaluators, or more "
            "rounds (max_rounds=)."
        )
    return ContrastSet(
        [prompts.texts[i] + text for (i, text), _ in pairs],
        [prompts.texts[i] + text for _, (i, text) in pairs],
        f"sampled from {lm.name}",
        paired=True,
    )


def match_pairs(toxic: list[Sampled], neutral: list[Sampled], n: int) -> list[tuple[Sampled, Sampled]]:
    """Pair each toxic completion with a neutral one: of the same prompt if there is one, of the nearest length.

    Every completion is used at most once. Toxic completions whose prompt has neutral ones choose first, so that no
    other takes their partner.

    Example:
        >>> match_pairs([(0, "aa"), (1, "b")], [(2, "x"), (0, "xyz")], 2)
        [((0, 'aa'), (0, 'xyz')), ((1, 'b'), (2, 'x'))]
    """
    pairs: list[tuple[Sampled, Sampled]] = []
    free = list(neutral)
    shared = {i for i, _ in neutral}
    for one in sorted(toxic, key=lambda sampled: sampled[0] not in shared)[:n]:
        if not free:
            break
        costs = [(other[0] != one[0], abs(len(other[1]) - len(one[1]))) for other in free]
        pairs.append((one, free.pop(int(np.lexsort(np.array(costs).T[::-1])[0]))))
    return pairs
