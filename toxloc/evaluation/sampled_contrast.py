"""Contrast sets sampled from the model itself, which need no dataset and contain texts that the model writes."""

from collections.abc import Sequence

import numpy as np

from ..errors import ToxlocError
from ..generation.generate import generate
from ..models.loaded import LoadedModel
from ..support.arguments import check_kind
from ..texts.contrast import ContrastSet
from ..texts.layouts import NEUTRAL_TO
from ..texts.loading import load_prompts
from ..texts.prompts import PROVOCATIVE, PromptSet
from .evaluators.base import Evaluator
from .evaluators.registry import DEFAULT, get_evaluators
from .judging import judge

MIN_PAIRS = 8  # fewer pairs are too few to localize with
Sampled = tuple[int, str]  # index of the prompt, completion


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
    """Sample a contrast set from a model, to localize its toxicity without a dataset.

    Each completion that all evaluators call toxic is paired with a completion that all evaluators call neutral: with a
    completion of the same prompt if there is one, and of the nearest length. Each text of the set is a prompt with its
    completion.

    Args:
        lm: the model.
        prompts: texts to complete; by default the built-in provocative prompts.
        evaluators: evaluators or their names; preferably two or more, since all of them must agree on a text. A text is
            toxic if its score is at least the evaluator's threshold, and neutral if its score is below 0.25 and below
            the threshold.
        n: number of pairs to sample; the set has fewer if `max_rounds` rounds do not yield `n` pairs.
        samples: completions per prompt and round.
        max_rounds: largest number of sampling rounds.
        max_new_tokens: length of a completion in tokens.
        seed: seed for the sampling; each round uses a different seed derived from it.

    Returns:
        A paired contrast set; identical completions of the same prompt are used once.

    Raises:
        ToxlocError: fewer than 8 pairs are requested or sampled, or `get_evaluators` fails.

    Example:
        >>> pairs = contrast_from_model(toxloc.load_model(), n=100)     # doctest: +SKIP
        >>> len(pairs.toxic)                                            # doctest: +SKIP
        100
    """
    if n < MIN_PAIRS:
        raise ToxlocError(f"n={n} pairs are too few to localize with; give n={MIN_PAIRS} or more.")
    judges = get_evaluators(evaluators)
    if prompts is None:
        prompts = load_prompts().only(PROVOCATIVE)
        assert prompts is not None
    check_kind(prompts, PromptSet, "the prompts")
    toxic: dict[Sampled, None] = {}
    neutral: dict[Sampled, None] = {}
    rounds = 0
    while rounds < max_rounds and min(len(toxic), len(neutral)) < n:
        completions = generate(
            lm, prompts.texts, samples=samples, max_new_tokens=max_new_tokens, seed=seed + 7919 * rounds
        )  # a new seed, and so new completions, in every round
        rounds += 1
        verdicts = judge(completions, judges)
        for i, texts in enumerate(completions):
            for k, text in enumerate(texts):
                if not text.strip():
                    continue
                if verdicts["all"].toxic[i, k]:
                    toxic[i, text] = None
                elif all(verdicts[e.name].scores[i, k] < min(NEUTRAL_TO, e.threshold) for e in judges):
                    neutral[i, text] = None
    pairs = match_pairs(list(toxic), list(neutral), n)
    if len(pairs) < MIN_PAIRS:
        names = ", ".join(e.name for e in judges)
        raise ToxlocError(
            f"Of {rounds * samples * len(prompts)} completions of {lm.name}, {names} agreed on {len(toxic)} toxic and "
            f"{len(neutral)} neutral, too few for {MIN_PAIRS} pairs; give more provocative prompts, fewer evaluators, "
            "or more rounds (max_rounds=)."
        )
    return ContrastSet(
        [prompts.texts[i] + text for (i, text), _ in pairs],
        [prompts.texts[i] + text for _, (i, text) in pairs],
        f"sampled from {lm.name}",
        paired=True,
    )


def match_pairs(toxic: list[Sampled], neutral: list[Sampled], n: int) -> list[tuple[Sampled, Sampled]]:
    """Pair toxic with neutral completions: of the same prompt if there are any, and of the nearest length.

    Every completion is used at most once. Toxic completions whose prompt also has neutral completions are paired first,
    so that these partners are still free. At most `n` pairs are returned.

    Example:
        >>> match_pairs([(0, "aa"), (1, "b")], [(2, "x"), (0, "xyz")], 2)
        [((0, 'aa'), (0, 'xyz')), ((1, 'b'), (2, 'x'))]
    """
    pairs: list[tuple[Sampled, Sampled]] = []
    free = list(neutral)
    shared = {i for i, _ in neutral}
    for sampled in sorted(toxic, key=lambda item: item[0] not in shared)[:n]:
        if not free:
            break
        costs = [(other[0] != sampled[0], abs(len(other[1]) - len(sampled[1]))) for other in free]
        pairs.append((sampled, free.pop(int(np.lexsort(np.array(costs).T[::-1])[0]))))
    return pairs
