import inspect

import numpy as np
import pytest

from toxloc import Meow2X, PromptSet, ToxlocError, evaluate
from toxloc.evaluation.agreement import agreement
from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.evaluation.cost.multiple_choice import Choice, accuracy
from toxloc.evaluation.cost.wording import wording
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.settings import EvaluationSettings
from toxloc.generation.generate import generate

PROMPTS = PromptSet(["You are", "He said that", "The soup"], ["provocative", "everyday", "everyday"])
LONG = FunctionEvaluator("long", lambda texts: [float(len(t) > 60) for t in texts])
HAS_E = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in t) for t in texts])


def test_figures_follow_from_the_completions(lm):
    result = evaluate(lm, PROMPTS, [LONG, HAS_E], samples=4, seed=2, neutral=["A quiet evening at home."])
    assert result.completions == generate(lm, PROMPTS.texts, samples=4, seed=2)
    flat = [text for texts in result.completions for text in texts]
    assert result.toxicity["long"].rate == np.mean([len(t) > 60 for t in flat])
    assert result.toxicity["has-e"].mean == pytest.approx(np.mean([0.75 * ("e" in t) for t in flat]))
    assert result.toxicity["any"].rate == np.mean([len(t) > 60 or "e" in t for t in flat])
    assert result.toxicity["all"].rate == np.mean([len(t) > 60 and "e" in t for t in flat])
    assert result.fluency == measure_fluency(lm, ["A quiet evening at home."])
    assert result.agreement.to_dict() == agreement(result.judgements, seed=2).to_dict()
    assert result.wording == wording(result.completions)
    assert result.method == "baseline"


def test_the_entry_in_the_results_has_the_documented_keys(lm):
    meow = Meow2X(layers=[7], scale=0.5)
    with meow.applied(lm):
        entry = evaluate(lm, PROMPTS, samples=1, neutral=["A quiet evening at home."]).to_dict()
    assert entry["method"] == "meow2x"
    assert entry["config"]["scale"] == 0.5
    assert list(entry["toxicity"]) == ["toxloc-guard", "profanity-check", "any", "all"]
    for figures in entry["toxicity"].values():
        assert list(figures) == [
            "rate",
            "rate_ci",
            "mean",
            "mean_ci",
            "expected_max",
            "expected_max_ci",
            "probability",
            "probability_ci",
        ]
    assert {"perplexity", "perplexity_ratio", "kl", "top_1"} <= set(entry["fluency"])
    assert entry["fluency"]["kl"] > 0
    assert list(entry["agreement"]["missed"]) == ["toxloc-guard", "profanity-check"]
    assert list(entry["wording"]) == ["median_words", "distinct_2", "repetition", "empty"]


def test_rows_contain_every_completion_with_its_verdicts(lm):
    result = evaluate(lm, PROMPTS, [LONG], samples=2, fluency=False)
    rows = list(result.rows())
    assert result.fluency is None
    assert result.agreement is None
    assert len(rows) == 6
    assert [row["kind"] for row in rows[::2]] == PROMPTS.kinds
    assert rows[3]["completion"] == result.completions[1][1]
    assert rows[3]["toxic"]["any"] == rows[3]["toxic"]["long"] == (len(rows[3]["completion"]) > 60)


def test_multiple_choice_is_measured_if_items_are_given(lm):
    items = [Choice("He took his coat and", ["went out.", "purple of"], 0), Choice("I am", ["zx qv", "tired."], 1)]
    result = evaluate(lm, PROMPTS, [LONG], samples=1, choices=items, fluency=False)
    assert result.choices == accuracy(lm, items)
    assert result.to_dict()["choices"]["n"] == 2


def test_edits_of_the_same_kind_keep_their_settings(tiny):
    prompts = PromptSet(["a b", "c"])
    edits = [Meow2X(layers=[0], scale=0.5), Meow2X(layers=[1], scale=0.25)]
    with edits[0].applied(tiny), edits[1].applied(tiny):
        config = evaluate(tiny, prompts, ["profanity-check"], samples=1, max_new_tokens=2, fluency=False).config
    assert {name: settings["scale"] for name, settings in config.items()} == {"meow2x": 0.5, "meow2x (2)": 0.25}


def test_settings_and_options_are_equivalent(lm):
    settings = EvaluationSettings(samples=2, seed=3, temperature=0.5, fluency=False, evaluators=("profanity-check",))
    by_settings = evaluate(lm, PROMPTS, settings=settings)
    assert list(by_settings.evaluators) == ["profanity-check"]
    assert by_settings.completions == generate(lm, PROMPTS.texts, samples=2, seed=3, temperature=0.5)
    by_options = evaluate(lm, PROMPTS, ["profanity-check"], samples=2, seed=3, temperature=0.5, fluency=False)
    assert by_settings.to_dict() == by_options.to_dict()
    changed = evaluate(lm, PROMPTS, [LONG], settings=settings, samples=1)
    assert list(changed.evaluators) == ["long"]
    assert changed.completions == [texts[:1] for texts in by_settings.completions]


def test_the_signature_shows_the_settings():
    parameters = inspect.signature(evaluate).parameters
    assert {"lm", "prompts", "evaluators", "settings", "neutral", "choices", "journal"} < set(parameters)
    assert set(EvaluationSettings.model_fields) < set(parameters)
    assert parameters["seed"].default == 0
    assert "options" not in parameters


def test_wrong_settings_are_refused(lm):
    with pytest.raises(ToxlocError, match="samples=0"):
        evaluate(lm, PROMPTS, samples=0)
    with pytest.raises(ToxlocError, match=r"'sample'.* protocol, evaluators, samples"):
        evaluate(lm, PROMPTS, sample=3)
    with pytest.raises(ToxlocError, match=r"max_new_tokens=256.* toxloc-tiny"):
        evaluate(lm, PROMPTS, max_new_tokens=256)


def test_empty_neutral_text_is_refused(lm):
    with pytest.raises(ToxlocError, match=r"no neutral texts.* omit neutral="):
        evaluate(lm, PROMPTS, neutral=[])
