import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators import registry
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.registry import (
    DEFAULT,
    EVALUATORS,
    Wanted,
    check_evaluator_names,
    get_evaluators,
    register,
)

WRONG = [
    (["gard"], "'gard'.* toxloc-guard"),
    (["toxloc-guard", "toxloc-guard"], "different names.* toxloc-guard, toxloc-guard"),
    (["toxloc-guard", "toxloc-guard@0.7"], "different names.* toxloc-guard, toxloc-guard"),
    ([], "one evaluator is needed.* toxloc-guard"),
    (["toxloc-guard=folder"], "toxloc-guard, not toxloc-guard=folder"),
    (["classifier"], "classifier needs .* classifier=PATH or classifier=HUB-ID"),
    (["instruct="], "instruct needs .* instruct=PATH"),
    (["detoxify-original="], "detoxify-original needs .* detoxify-original=PATH"),
    (["toxloc-guard@0"], "'toxloc-guard@0'.* 0 is out of range"),
    (["toxloc-guard@1.5"], r"'toxloc-guard@1\.5'.* 1\.5 is out of range"),
    (["toxloc-guard@2"], "'toxloc-guard@2'.* 2 is out of range"),
    ([""], "no evaluator ''.* toxloc-guard"),
]


@pytest.mark.parametrize(("names", "message"), WRONG)
def test_wrong_names_are_refused_with_and_without_loading(names, message):
    for check in (check_evaluator_names, get_evaluators):
        with pytest.raises(ToxlocError, match=message):
            check(names)


def test_names_sources_and_thresholds():
    assert [judge.name for judge in get_evaluators(DEFAULT)] == list(DEFAULT)
    check_evaluator_names(["toxloc-guard", "classifier=a", "classifier=b", "detoxify-unbiased"])
    wanted = Wanted.parse("classifier=a/b@c@0.25")
    assert (wanted.maker.name, wanted.source, wanted.threshold) == ("classifier", "a/b@c", 0.25)
    (judge,) = get_evaluators(["profanity-check@.7"])
    assert (judge.threshold, judge.about()["threshold"]) == (0.7, 0.7)
    assert judge.about()["calibration"] == "none; the user set the threshold"
    assert get_evaluators(["profanity-check"])[0].threshold == 0.5


@pytest.mark.parametrize("name", ["any", "all", "both"])
def test_reserved_names(name):
    with pytest.raises(ToxlocError, match=f"'any', 'majority', 'all', 'both'.* got {name}"):
        get_evaluators([FunctionEvaluator(name, lambda texts: [0.0] * len(texts))])
    with pytest.raises(ToxlocError, match=f"'any', 'majority', 'all', 'both'.* got {name}"):
        register(name)


def test_a_registered_function(monkeypatch):
    monkeypatch.setattr(registry, "EVALUATORS", dict(EVALUATORS))
    register("shouting", threshold=0.9)(lambda texts: [float(text.isupper()) for text in texts])
    (judge,) = get_evaluators(["shouting"])
    assert judge.threshold == 0.9
    assert judge.score(["HEY", "hey"])["toxicity"].tolist() == [1, 0]
    check_evaluator_names(["shouting"])
    with pytest.raises(ToxlocError, match="'shouting' already"):
        register("shouting")
    with pytest.raises(ToxlocError, match="shouting, not shouting=x"):
        get_evaluators(["shouting=x"])


def test_evaluators_have_the_names_of_their_makers():
    assert all(maker.name == name for name, maker in EVALUATORS.items())
    made = {name: EVALUATORS[name]() for name in EVALUATORS if EVALUATORS[name].source != "needed"}
    assert {name: judge.name for name, judge in made.items()} == {name: name for name in made}
    assert EVALUATORS["llama-guard"]("a/b").name == "llama-guard:b"
    assert EVALUATORS["classifier"]("a/b").name == "b"


def test_results_name_the_languages_of_an_evaluator():
    languages = {name: EVALUATORS[name]().languages for name in ("toxloc-guard", "profanity-check", "toxloc-rtp")}
    assert set(languages.values()) == {("en",)}
    multilingual = EVALUATORS["detoxify-multilingual"]()
    assert multilingual.languages == ("en", "fr", "es", "it", "pt", "tr", "ru")
    assert multilingual.about()["languages"] == list(multilingual.languages)
    unknown = EVALUATORS["classifier"]("a/b")
    assert unknown.languages is None and "languages" not in unknown.about()


def test_guards_have_a_default_model_and_take_other_models():
    assert EVALUATORS["qwen3guard"]().source == "Qwen/Qwen3Guard-Gen-0.6B"
    assert EVALUATORS["llama-guard"]().source == "meta-llama/Llama-Guard-3-8B"
    small, large = "qwen3guard=a/Qwen3Guard-Gen-0.6B", "qwen3guard=a/Qwen3Guard-Gen-8B"
    check_evaluator_names(["qwen3guard", small, large])  # their names differ
    assert [Wanted.parse(text).make().name for text in (small, large)] == [
        "qwen3guard:Qwen3Guard-Gen-0.6B",
        "qwen3guard:Qwen3Guard-Gen-8B",
    ]
    with pytest.raises(ToxlocError, match=r"different names.* qwen3guard, qwen3guard"):
        check_evaluator_names(["qwen3guard", "qwen3guard@0.3"])


@pytest.mark.parametrize("name", ["textdetox-xlmr", "textdetox-xlmr-v2", "textdetox-bert"])
def test_the_classifiers_of_textdetox(name, save):
    """Their second class is the toxic one, whether the classes have names or not."""
    assert EVALUATORS[name]().source.startswith("textdetox/")
    scores = []
    for classes in (["neutral", "toxic"], ["LABEL_0", "LABEL_1"]):
        folder, _ = save(classes)
        (judge,) = get_evaluators([f"{name}={folder}"])
        assert judge.name == name
        scores.append(judge.score(["you are a fool"]))
    assert scores[0]["toxicity"] == scores[1]["toxicity"] == scores[1]["LABEL_1"]
    assert scores[1]["toxicity"] != scores[1]["LABEL_0"]
    languages = EVALUATORS[name]().languages
    assert languages is None if name == "textdetox-xlmr-v2" else {"en", "de", "uk", "am", "zh"} < set(languages)
