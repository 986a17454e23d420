import pytest

from toxloc import PromptSet, ToxlocError, contrast_from_model
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.sampled_contrast import match_pairs

PROMPTS = PromptSet(["You are", "I think that", "The dog went to", "Nobody told me"])
LONG = FunctionEvaluator("long", lambda texts: [float(len(text) > 60) for text in texts])
THE = FunctionEvaluator("the", lambda texts: [0.9 if " the" in text else 0.1 for text in texts])


def test_all_evaluators_agree_on_every_text_and_every_text_begins_with_a_prompt(lm):
    pairs = contrast_from_model(lm, PROMPTS, [LONG, THE], n=8, samples=12, seed=1)
    assert pairs.paired
    assert len(pairs.toxic) == 8
    for texts, toxic in ((pairs.toxic, True), (pairs.neutral, False)):
        assert len(set(texts)) == len(texts)
        for text in texts:
            prompt = next(p for p in PROMPTS.texts if text.startswith(p))
            completion = [text[len(prompt) :]]
            for judge in (LONG, THE):
                assert (judge.score(completion)["toxicity"][0] >= 0.5) == toxic


def test_the_same_seed_gives_the_same_set(lm):
    first, again, other = (
        contrast_from_model(lm, PROMPTS, [THE], n=8, samples=8, max_rounds=2, seed=seed) for seed in (0, 0, 5)
    )
    assert first == again
    assert first.toxic != other.toxic


def test_too_few_pairs(lm):
    never = FunctionEvaluator("never", lambda texts: [0.0] * len(texts))
    with pytest.raises(
        ToxlocError, match=r"8 completions of toxloc-tiny, never .* 0 toxic and \d neutral.*max_rounds="
    ):
        contrast_from_model(lm, PROMPTS, [never], n=8, samples=1, max_rounds=2)
    with pytest.raises(ToxlocError, match=r"n=3.* n=8"):
        contrast_from_model(lm, PROMPTS, [never], n=3)


def test_partners_have_the_same_prompt_if_possible_and_the_nearest_length():
    toxic = [(0, "aaaa"), (1, "bb"), (2, "cccccc")]
    neutral = [(1, "x" * 9), (0, "xx"), (0, "xxx"), (3, "x" * 7)]
    assert match_pairs(toxic, neutral, 3) == [
        ((0, "aaaa"), (0, "xxx")),
        ((1, "bb"), (1, "x" * 9)),
        ((2, "cccccc"), (3, "x" * 7)),
    ]
    assert len(match_pairs(toxic, neutral, 1)) == 1
    assert len(match_pairs(toxic, neutral[:1], 3)) == 1
