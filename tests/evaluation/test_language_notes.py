import pytest

from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.registry import EVALUATORS
from toxloc.evaluation.language_notes import language_notes

EN = "The weather is very nice today, so we went for a walk."
DE = "Das Wetter ist heute sehr schön, also gingen wir spazieren."
FR = "Il fait très beau aujourd'hui, alors nous sommes allés nous promener."
FI = "Sää on tänään oikein kaunis, joten lähdimme kävelylle."
PL = "Dzisiaj pogoda jest bardzo ładna, więc poszliśmy na spacer."
CS = "Dnes je velmi pěkné počasí, takže jsme šli na procházku."
SHORT = "Ok"


def judge(name, *languages):
    """An evaluator that knows these languages; with None in their place, its languages are unknown."""
    made = FunctionEvaluator(name, lambda texts: [0.0] * len(texts))
    made.languages = None if languages == (None,) else languages
    return made


def test_shares_are_of_all_completions():
    notes = language_notes([[DE, DE], [DE, SHORT], [EN, DE]], [judge("a", "en"), judge("b", "de", "en")])
    assert notes.detected == {"de": 4 / 6, "en": 1 / 6, "und": 1 / 6}
    assert list(notes.detected) == ["de", "en", "und"] or list(notes.detected) == ["de", "und", "en"]
    assert notes.foreign == {"a": 4 / 6, "b": 0.0}


def test_the_warning_is_one_sentence_and_an_advice():
    notes = language_notes([[DE, DE], [DE, SHORT], [EN, DE]], [judge("profane", "en")])
    (warning,) = notes.warnings
    start, advice = warning.split(" Use ")
    assert start == (
        "profane knows English only; 67% of the completions look German (de): its rates there mean little."
    )
    assert "profane" not in advice and advice.endswith(".")


def test_the_advice_names_evaluators_that_know_all_the_languages():
    (warning,) = language_notes([[FR] * 4], [judge("profane", "en")]).warnings
    assert "detoxify-multilingual" in warning.split(" Use ")[1]
    (warning,) = language_notes([[FI] * 4], [judge("profane", "en")]).warnings
    assert "detoxify" not in warning  # Finnish is not among its seven languages


def test_the_advice_if_no_evaluator_knows_the_language(monkeypatch):
    for name in list(EVALUATORS):
        monkeypatch.delitem(EVALUATORS, name)
    (warning,) = language_notes([[FI] * 4], [judge("profane", "en")]).warnings
    assert warning.endswith("mean little. Use an evaluator that knows the language.")


def test_a_better_evaluator_of_the_same_evaluation_comes_first():
    evaluators = [judge("profane", "en"), judge("broad", "*"), judge("nordic", "fi", "sv")]
    (warning,) = language_notes([[FI] * 4], evaluators).warnings
    assert warning.endswith(" Read the rates of broad and nordic instead.")


def test_evaluators_with_the_same_languages_share_a_sentence():
    evaluators = [judge("a", "en"), judge("b", "en"), judge("c", "en", "fr"), judge("d", "de")]
    first, second = language_notes([[DE] * 3], evaluators).warnings
    assert first.startswith("a and b know English only; 100% of the completions look German (de): their rates there")
    assert second.startswith("c knows English and French only; 100% of the completions look German (de): its rates")


def test_several_languages():
    (warning,) = language_notes([[DE] * 4 + [FR] * 3 + [EN] * 3], [judge("a", "en")]).warnings
    assert "40% of the completions look German (de) and 30% look French (fr): its rates" in warning
    many = [[DE] * 7 + [FR] * 6 + [FI] * 5 + [PL] * 4 + [CS] * 3]
    (warning,) = language_notes(many, [judge("a", "en")]).warnings
    assert (
        "28% of the completions look German (de), 24% look French (fr), 20% look Finnish (fi) and 28% are in 2 other "
        "languages: its rates"
    ) in warning


def test_many_languages_of_an_evaluator_are_counted():
    known = ("ar", "cs", "da", "el", "en", "es", "fr", "hi", "hu")
    (warning,) = language_notes([[DE] * 4], [judge("a", *known)]).warnings
    assert warning.startswith("a knows 9 other languages only; 100% of the completions look German (de)")


def test_unknown_languages_give_no_warning_and_are_recorded():
    notes = language_notes([[DE] * 4], [judge("a", None), judge("b", "*")])
    assert notes.warnings == []
    assert notes.to_dict()["evaluators"] == {
        "a": {"languages": "unknown", "foreign": None},
        "b": {"languages": ["*"], "foreign": 0.0},
    }


@pytest.mark.parametrize(
    ("foreign", "english", "warned"),
    [(2, 0, False), (3, 0, True), (3, 27, True), (3, 28, False), (9, 91, False), (10, 90, True)],
)
def test_a_warning_needs_three_completions_and_a_tenth(foreign, english, warned):
    notes = language_notes([[DE] * foreign + [EN] * english], [judge("a", "en")])
    assert bool(notes.warnings) is warned
    assert notes.foreign["a"] == foreign / (foreign + english)


def test_short_texts_give_no_warning():
    notes = language_notes([[SHORT, "", "123", "?!"]] * 20, [judge("a", "en")])
    assert (notes.warnings, notes.detected) == ([], {"und": 1.0})


def test_a_rare_language_of_the_prompts_is_enough():
    completions = [[EN, EN]] * 40 + [[DE, DE]] * 2
    assert language_notes(completions, [judge("a", "en")]).warnings == []
    (warning,) = language_notes(completions, [judge("a", "en")], ["en"] * 40 + ["de"] * 2).warnings
    assert "5% of the completions look German (de)" in warning


def test_no_completions():
    notes = language_notes([], [judge("a", "en")])
    assert (notes.detected, notes.foreign, notes.warnings) == ({}, {"a": 0.0}, [])
