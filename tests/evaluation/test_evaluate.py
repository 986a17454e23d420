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
    found = evaluate(lm, PROMPTS, [LONG, HAS_E], samples=4, seed=2, neutral=["A quiet evening at home."])
    assert found.completions == generate(lm, PROMPTS.texts, samples=4, seed=2)
    flat = [text for several in found.completions for text in several]
    assert found.toxicity["long"].rate == np.mean([len(t) > 60 for t in flat])
    assert found.toxicity["has-e"].mean == pytest.approx(np.mean([0.75 * ("e" in t) for t in flat]))
    assert found.toxicity["any"].rate == np.mean([len(t) > 60 or "e" in t for t in flat])
    assert found.toxicity["all"].rate == np.mean([len(t) > 60 and "e" in t for t in flat])
    assert found.fluency == measure_fluency(lm, ["A quiet evening at home."])
    assert found.agreement.to_dict() == agreement(found.judgements, seed=2).to_dict()
    assert found.wording == wording(found.completions)
    assert found.method == "baseline"


def test_the_entry_of_the_results_has_the_promised_schema(lm):
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


def test_rows_hold_every_completion_with_its_verdicts(lm):
    found = evaluate(lm, PROMPTS, [LONG], samples=2, fluency=False)
    rows = list(found.rows())
    assert found.fluency is None
    assert found.agreement is None
    assert len(rows) == 6
    assert [row["kind"] for row in rows[::2]] == PROMPTS.kinds
    assert rows[3]["completion"] == found.completions[1][1]
    assert rows[3]["toxic"]["any"] == rows[3]["toxic"]["long"] == (len(rows[3]["completion"]) > 60)


def test_multiple_choice_is_answered_where_items_are_given(lm):
    items = [Choice("He took his coat and", ["went out.", "purple of"], 0), Choice("I am", ["zx qv", "tired."], 1)]
    found = evaluate(lm, PROMPTS, [LONG], samples=1, choices=items, fluency=False)
    assert found.choices == accuracy(lm, items)
    assert found.to_dict()["choices"]["n"] == 2


def test_settings_and_options_do_the_same(lm):
    settings = EvaluationSettings(samples=2, seed=3, temperature=0.5, fluency=False, evaluators=("profanity-check",))
    one = evaluate(lm, PROMPTS, settings=settings)
    assert list(one.evaluators) == ["profanity-check"]
    assert one.completions == generate(lm, PROMPTS.texts, samples=2, seed=3, temperature=0.5)
    other = evaluate(lm, PROMPTS, ["profanity-check"], samples=2, seed=3, temperature=0.5, fluency=False)
    assert one.to_dict() == other.to_dict()
    changed = evaluate(lm, PROMPTS, [LONG], settings=settings, samples=1)
    assert list(changed.evaluators) == ["long"]
    assert changed.completions == [several[:1] for several in one.completions]


def test_the_signature_shows_the_settings():
    parameters = inspect.signature(evaluate).parameters
    assert {"lm", "prompts", "evaluators", "settings", "neutral", "choices", "journal"} < set(parameters)
    assert set(EvaluationSettings.model_fields) < set(parameters)
    assert parameters["seed"].default == 0
    assert "options" not in parameters


def test_wrong_settings_are_refused(lm):
    with pytest.raises(ToxlocError, match="samples=0"):
        evaluate(lm, PROMPTS, samples=0)
    with pytest.raises(ToxlocError, match="no setting 'sample' here; there are protocol, evaluators, samples"):
        evaluate(lm, PROMPTS, sample=3)
    with pytest.raises(ToxlocError, match="max_new_tokens=256 is out of range for toxloc-tiny"):
        evaluate(lm, PROMPTS, max_new_tokens=256)


def test_no_neutral_text(lm):
    with pytest.raises(ToxlocError, match="no neutral texts"):
        evaluate(lm, PROMPTS, neutral=[])
