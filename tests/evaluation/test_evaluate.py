import inspect
import io
import json

import numpy as np
import pytest
from rich.console import Console

from toxloc import Meow2X, PromptSet, ToxlocError, compare, evaluate, load_evaluation, load_prompts
from toxloc.evaluation.agreement import agreement
from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.evaluation.cost.multiple_choice import Choice, accuracy
from toxloc.evaluation.cost.wording import wording
from toxloc.evaluation.evaluators.base import EvaluatorError, FunctionEvaluator
from toxloc.evaluation.evaluators.rtp import RTPJudge
from toxloc.evaluation.settings import EvaluationSettings
from toxloc.generation.generate import generate
from toxloc.support import progress

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
    assert list(entry["toxicity"]) == ["toxloc-rtp", "toxloc-guard", "profanity-check", "any", "majority", "all"]
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
    assert list(entry["agreement"]["missed"]) == ["toxloc-rtp", "toxloc-guard", "profanity-check"]
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


def test_a_judge_that_fails_loses_neither_completions_nor_scores(lm, tmp_path, monkeypatch):
    """The second call takes everything from the journal, and its result is that of a call without a failure."""

    def fails(texts):
        raise TimeoutError("no answer")

    journal, options = tmp_path / "journal", {"samples": 2, "fluency": False}
    broken = FunctionEvaluator("has-e", fails)
    with pytest.raises(
        EvaluatorError, match=r"'has-e' failed on .* so far are in .*journal and .*journal\.scores\.$"
    ) as e:
        evaluate(lm, PROMPTS, ["toxloc-rtp", broken], journal=journal, **options)
    rows = list(e.value.rows())
    assert len(rows) == 6
    assert all(list(row["scores"]) == ["toxloc-rtp"] for row in rows)

    expected = evaluate(lm, PROMPTS, ["toxloc-rtp", HAS_E], **options)
    assert [row["completion"] for row in rows] == [text for texts in expected.completions for text in texts]
    monkeypatch.setattr(RTPJudge, "_score", fails)
    again = evaluate(lm, PROMPTS, ["toxloc-rtp", HAS_E], journal=journal, **options)
    assert again.figures == expected.figures


MIXED = PromptSet(
    ["Das Wetter ist", "Die Suppe braucht", "The weather is", "The soup needs"],
    languages=["de", "de", "en", "en"],
    categories=["weather", "food", "weather", "food"],
)


def test_rates_by_language_and_category_follow_from_the_completions(lm):
    result = evaluate(lm, MIXED, [LONG, HAS_E], samples=4, seed=2, fluency=False)
    toxic = [["e" in text for text in texts] for texts in result.completions]
    assert {language: of["has-e"].rate for language, of in result.by_language.items()} == {
        "de": np.mean(toxic[:2]),
        "en": np.mean(toxic[2:]),
    }
    assert {category: of["has-e"].rate for category, of in result.by_category.items()} == {
        "food": np.mean(toxic[1::2]),
        "weather": np.mean(toxic[::2]),
    }
    assert list(result.by_language["de"]) == list(result.toxicity)
    entry = result.figures["by_language"]["de"]["any"]
    assert entry == result.by_language["de"]["any"].to_dict() and entry["too_small"]
    rows = list(result.rows())
    assert [row["language"] for row in rows[::4]] == MIXED.languages
    assert [row["category"] for row in rows[::4]] == MIXED.categories


def test_prompts_without_languages_and_categories_have_no_groups(lm):
    result = evaluate(lm, PROMPTS, [LONG], samples=1, fluency=False)
    assert result.by_language is result.by_category is None
    assert (result.figures["by_language"], result.figures["by_category"]) == (None, None)
    assert {(row["language"], row["category"]) for row in result.rows()} == {(None, None)}


def test_a_judge_that_does_not_know_the_language_is_warned_of(lm, monkeypatch):
    english = FunctionEvaluator("english", lambda texts: [0.0] * len(texts))
    english.languages = ("en",)
    german = [["Das Wetter ist heute sehr schön.", "Wir gehen morgen zusammen in die Stadt."]] * len(PROMPTS)
    monkeypatch.setattr("toxloc.evaluation.evaluate.generate", lambda *args, **options: german)
    shown = io.StringIO()
    with progress.shown(Console(file=shown, width=500)):
        result = evaluate(lm, PROMPTS, [english, LONG], samples=2, fluency=False)
    (warning,) = result.language_notes.warnings
    assert warning.startswith("english knows English only; 100% of the completions look German (de): its rates")
    assert warning in shown.getvalue()
    recorded = result.figures["language_notes"]
    assert recorded["warnings"] == [warning]
    assert recorded["evaluators"] == {
        "english": {"languages": ["en"], "foreign": 1.0},
        "long": {"languages": "unknown", "foreign": None},
    }


def test_rough_english_gives_no_warning(lm):
    """toxloc-tiny writes rough English; its two default evaluators know English only."""
    result = evaluate(lm, load_prompts().limited(20), ["toxloc-guard", "profanity-check"], samples=3, fluency=False)
    assert result.language_notes.warnings == []
    assert max(result.language_notes.foreign.values()) < 0.02
    assert result.language_notes.detected["en"] > 0.5


def test_evaluations_without_groups_and_language_notes_are_read(lm, tmp_path):
    """Versions before 0.3 wrote neither."""
    result = evaluate(lm, MIXED, [LONG], samples=2, fluency=False)
    result.save(tmp_path / "new")
    (tmp_path / "old").mkdir()
    figures = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    kept = {
        name: value for name, value in figures.items() if name not in ("by_language", "by_category", "language_notes")
    }
    (tmp_path / "old" / "evaluation.json").write_text(json.dumps(kept))
    rows = [json.loads(line) for line in (tmp_path / "new" / "completions.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("language") in MIXED.languages and row.pop("category") in MIXED.categories
    (tmp_path / "old" / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old, new = load_evaluation(tmp_path / "old"), load_evaluation(tmp_path / "new")
    assert old.prompts == new.prompts and "by_language" not in old.figures
    assert compare(old, new).differences["long"].mean == 0
    assert new.figures["by_language"]["en"]["long"]["n_prompts"] == 2
