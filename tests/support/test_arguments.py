import numpy as np
import pytest

import toxloc
from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, KnockoutTest, NeutralText, PromptSet, ToxlocError
from toxloc.evaluation.calibration import calibrate
from toxloc.evaluation.cost.fluency import Unedited, measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll, nll_per_text, strided_perplexity
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.classifier import Classifier
from toxloc.evaluation.evaluators.registry import check_evaluator_names, get_evaluators
from toxloc.generation.generate import generate
from toxloc.support.arguments import as_list, check_kind, whole_number

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
PROMPTS = PromptSet(TEXTS)
JUDGE = FunctionEvaluator("long", lambda texts: [min(1.0, len(text) / 100) for text in texts])
SHORT = {"samples": 1, "max_new_tokens": 2}

# Functions of a list of texts. Each returns a value that can be compared.
OF_TEXTS = {
    "toxic": lambda lm, texts: ContrastSet(texts, ["x"]),
    "neutral": lambda lm, texts: ContrastSet(["x"], texts),
    "without": lambda lm, texts: ContrastSet(["p"], ["q"]).without(texts),
    "prompts": lambda lm, texts: PromptSet(texts),
    "tune": lambda lm, texts: NeutralText(["x"], texts, ["y"]),
    "split": lambda lm, texts: NeutralText.split([*map(str, range(12)), *texts] if isinstance(texts, list) else texts),
    "generate": lambda lm, texts: generate(lm, texts, **SHORT),
    "fluency": lambda lm, texts: measure_fluency(lm, texts),
    "unedited": lambda lm, texts: Unedited(lm, texts, kl=False).compare().perplexity,
    "mean_nll": lambda lm, texts: mean_nll(lm, texts),
    "nll_per_text": lambda lm, texts: nll_per_text(lm, texts)[0].tolist(),
    "strided": lambda lm, texts: strided_perplexity(lm, texts),
    "evaluate": lambda lm, texts: toxloc.evaluate(lm, PROMPTS, [JUDGE], neutral=texts, **SHORT).fluency,
    "knock-outs": lambda lm, texts: KnockoutTest(lm, PAIRS, neutral=texts).remove([0]).perplexity_ratio,
    "more_neutral": lambda lm, texts: (
        toxloc.collect_contrast(lm, PAIRS, curvature=True, more_neutral=texts).C[0].sum().item()
    ),
    "driving_texts": lambda lm, texts: toxloc.driving_texts(lm, texts, 0, 3),
    "head_view": lambda lm, texts: [view.roles for view in toxloc.head_view(lm, [("0.attention", 1)], texts)],
    "score": lambda lm, texts: JUDGE.score(texts)["toxicity"].tolist(),
    "calibrate": lambda lm, texts: calibrate(JUDGE, texts, rate=0.9),
}

# Functions of another list.
OF_LISTS = {
    "kinds": lambda lm, values: PromptSet(["a", "b", "c"], values),
    "scores of prompts": lambda lm, values: PromptSet(["a", "b", "c"], scores=values),
    "scores": lambda lm, values: toxloc.localize(lm, PAIRS, values),
    "parts": lambda lm, values: toxloc.localize(lm, PAIRS, parts=values),
    "evaluators": lambda lm, values: toxloc.evaluate(lm, PROMPTS, values, **SHORT),
    "evaluators of a run": lambda lm, values: toxloc.run(evaluators=values),
    "evaluators of a contrast": lambda lm, values: toxloc.contrast_from_model(lm, PROMPTS, values),
    "evaluators of a knock-out": lambda lm, values: KnockoutTest(lm, PAIRS, prompts=PROMPTS, evaluators=values),
    "get_evaluators": lambda lm, values: get_evaluators(values),
    "check_evaluator_names": lambda lm, values: check_evaluator_names(values),
    "classes": lambda lm, values: Classifier("folder", toxic=values),
    "parts of a chain": lambda lm, values: toxloc.Chain(values),
    "parts of a knock-out": lambda lm, values: toxloc.knockout(lm, PAIRS, values),
    "counts": lambda lm, values: toxloc.knockout_curve(None, None, counts=values),
    "neurons": lambda lm, values: toxloc.promoted_tokens(lm, values),
    "heads": lambda lm, values: toxloc.head_view(lm, values, TEXTS),
}
OF_NEURONS = {"neurons of Meow2X": lambda lm, values: toxloc.Meow2X(neurons=values)}


@pytest.fixture(scope="module")
def lm():
    return random_model()


@pytest.mark.parametrize("name", [*OF_TEXTS, *OF_LISTS])
def test_a_string_or_a_number_is_not_read_as_a_list(unchecked, lm, name):
    function = (OF_TEXTS | OF_LISTS)[name]
    with pytest.raises(ToxlocError, match=r"^The string 'abc' was given for .*; give a list, such as \['abc'\]\.$"):
        function(lm, "abc")
    with pytest.raises(ToxlocError, match=r"^A value of the type int was given for .*; give a list\.$"):
        function(lm, 3)


@pytest.mark.parametrize("name", OF_TEXTS)
@pytest.mark.parametrize("bad", [None, 3, b"abc", "\ud800"])
def test_texts_that_are_not_strings_or_cannot_be_encoded_are_named(unchecked, lm, name, bad):
    with pytest.raises(
        ToxlocError, match=r"^Text number \d+ .*(not a string: |lone surrogate '\\ud800' at character 0)"
    ):
        OF_TEXTS[name](lm, [TEXTS[0], bad])


@pytest.mark.parametrize("name", [name for name in OF_TEXTS if name != "split"])
def test_a_generator_and_an_array_are_read_as_a_list(unchecked, lm, name):
    expected = OF_TEXTS[name](lm, list(TEXTS))
    assert OF_TEXTS[name](lm, (text for text in TEXTS)) == expected
    assert OF_TEXTS[name](lm, np.array(TEXTS)) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toxic", "no toxic texts"),
        ("prompts", "is empty"),
        ("fluency", "No text has at least two tokens"),
        ("strided", "No text has at least two tokens"),
        ("evaluate", "no neutral texts"),
        ("driving_texts", "at least one text"),
        ("calibrate", "0 texts are too few"),
        ("scores", "Unknown score .none given"),
        ("parts", "Unknown part .none given"),
        ("evaluators", "At least one evaluator is needed"),
        ("parts of a chain", "at least one intervention"),
        ("parts of a knock-out", "got none"),
        ("counts", "at least one number of units"),
    ],
)
def test_an_empty_list_is_refused_where_a_value_is_needed(unchecked, lm, name, message):
    with pytest.raises(ToxlocError, match=message):
        (OF_TEXTS | OF_LISTS)[name](lm, [])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("kinds", ["a", None, "b"], r"must be a string for each of the 3 texts; None is not\."),
        ("kinds", ["a"], "there are 1"),
        ("scores of prompts", [0.1, 0.2, float("nan")], "must be a number from 0 to 1 .*; nan is not"),
        ("scores of prompts", [0.1, 0.2, "high"], "'high' is not"),
        ("scores of prompts", [0.1, 0.2, 1.5], r"1\.5 is not"),
        ("scores", [None, []], r"Unknown score None, \[\]"),
        ("parts", [None], "Unknown part None"),
        ("evaluators", [None], "type NoneType was given for an evaluator"),
        ("parts of a chain", ["abc"], "The string 'abc' was given for a part of a chain"),
        ("parts of a knock-out", [(1, 2, 3)], r"\(1, 2, 3\) is not a neuron or a head"),
        ("parts of a knock-out", [("a", 3)], "'a' is not a site"),
        ("parts of a knock-out", [(1, "b")], "not a neuron or a head"),
        ("neurons of Meow2X", "ab", "'a' is not a neuron or a head"),
        ("counts", [2.5], r"counts=2\.5: give a whole number, 1 or more"),
    ],
)
def test_values_of_wrong_types_in_lists_are_named(unchecked, lm, name, values, message):
    with pytest.raises(ToxlocError, match=message):
        (OF_LISTS | OF_NEURONS)[name](lm, values)


@pytest.mark.parametrize("prompts", ["abc", ["abc"], PAIRS])
@pytest.mark.parametrize(
    "function",
    [
        lambda lm, prompts: toxloc.evaluate(lm, prompts, [JUDGE]),
        lambda lm, prompts: toxloc.contrast_from_model(lm, prompts, [JUDGE]),
        lambda lm, prompts: KnockoutTest(lm, PAIRS, prompts=prompts, evaluators=[JUDGE]),
    ],
    ids=["evaluate", "contrast_from_model", "KnockoutTest"],
)
def test_prompts_must_be_a_prompt_set(unchecked, lm, function, prompts):
    with pytest.raises(ToxlocError, match=r"was given for the prompts; give a value of the type PromptSet\."):
        function(lm, prompts)


@pytest.mark.parametrize(
    "function",
    [
        lambda lm, pairs: toxloc.localize(lm, pairs),
        lambda lm, pairs: toxloc.collect_contrast(lm, pairs),
        lambda lm, pairs: toxloc.knockout(lm, pairs, [0]),
        lambda lm, pairs: toxloc.TRNE.fit(lm, pairs, norm=0.1),
    ],
    ids=["localize", "collect_contrast", "knockout", "fit"],
)
def test_pairs_must_be_a_contrast_set(unchecked, lm, function):
    with pytest.raises(
        ToxlocError, match=r"^The string 'builtin' was given for the contrast set; give .* ContrastSet\.$"
    ):
        function(lm, "builtin")


def test_over_suppression_needs_a_prompt_set(unchecked, lm):
    with (
        toxloc.Meow2X(layers=[0], scale=0.5).applied(lm),
        pytest.raises(ToxlocError, match="The string 'abc' was given for the prompts"),
    ):
        toxloc.over_suppression(lm, "abc")


@pytest.mark.parametrize("values", [b"ab", {"a": 1}, {"a"}, None])
def test_values_without_an_order_are_no_list(unchecked, values):
    with pytest.raises(ToxlocError, match=f"A value of the type {type(values).__name__} was given for the texts"):
        as_list(values, "the texts")


def test_a_long_string_is_shortened():
    with pytest.raises(ToxlocError) as caught:
        as_list("x" * 5000, "the texts")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [True, 2.0, "3", None, float("nan"), 0, -1])
def test_a_number_that_is_not_whole_or_too_small_is_named(unchecked, value):
    with pytest.raises(ToxlocError, match=r"^count=.*: give a whole number, 1 or more\.$"):
        whole_number(value, "count", at_least=1)


def test_integers_of_numpy_are_whole_numbers():
    number = whole_number(np.int64(3), "count", at_least=3)
    assert (number, type(number)) == (3, int)


def test_an_instance_is_of_its_kind():
    check_kind(PROMPTS, PromptSet, "the prompts")
    with pytest.raises(ToxlocError, match=r"A value of the type ContrastSet was given for x; give .* PromptSet"):
        check_kind(PAIRS, PromptSet, "x")
