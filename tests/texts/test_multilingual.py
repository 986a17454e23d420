import json

import pytest

from toxloc import ToxlocError, load_prompts
from toxloc.texts.multilingual import (
    HARMS,
    is_polyglotoxicityprompts,
    is_rtp_lx,
    polyglotoxicityprompts,
    rtp_lx_prompts,
)

MILD = dict.fromkeys(("Toxicity", *HARMS), 1.0)


def rated(prompt, locale="DE", key="Annotations", **ratings):
    """A row of RTP-LX with the columns of its files."""
    return {
        "Prompt": prompt,
        "Completion": "",
        "Index": 3,
        "Locale": locale,
        "Dialect": "",
        key: MILD | ratings,
        f"{key}Raw": {harm: [1, 1, 1] for harm in MILD},
    }


def web(prompt, **columns):
    """A row of PolygloToxicityPrompts with the columns of its files that matter, and a text that must not be read."""
    return {"text": f"{prompt} and more text", "prompt": prompt, "continuation": "…", "toxicity_bucket": 0} | columns


def perspective(score, *languages):
    return {
        "attributeScores": {"TOXICITY": {"summaryScore": {"type": "PROBABILITY", "value": score}}},
        "detectedLanguages": ["fr", "la"],
        "languages": list(languages),
    }


def test_ratings_of_rtp_lx_become_scores_and_categories():
    rows = [
        rated("Die Suppe", Toxicity=1.0),
        rated("Du bist so", Toxicity=3.0, Insult=2 + 1 / 3, Bias=2.0),
        rated("Diese Leute", "PT-BR", Toxicity=5.0, Insult=3.0, IdentityAttack=3.0),  # the first of both
        rated("Geh doch", "ZH-Hans", "PromptAnnotations", Toxicity=2.0, Violence=1.5),
    ]
    prompts = rtp_lx_prompts(rows, "r", None)
    assert prompts.texts == ["Die Suppe", "Du bist so", "Diese Leute", "Geh doch"]
    assert prompts.scores == [0.0, 0.5, 1.0, 0.25]
    assert prompts.kinds == ["everyday", "provocative", "provocative", "everyday"]
    assert prompts.categories == ["none", "Insult", "IdentityAttack", "Violence"]
    assert prompts.languages == ["de", "de", "pt", "zh"]


def test_rows_of_rtp_lx_without_a_prompt_or_a_rating_are_left_out():
    unrated = rated("Ohne Wertung", Toxicity=None)
    rows = [rated("NA", Toxicity=5.0), rated(""), rated(None), unrated, rated("Die Suppe", Insult=None, Bias=2.0)]
    prompts = rtp_lx_prompts(rows, "r", None)
    assert (prompts.texts, prompts.categories) == (["Die Suppe"], ["Bias"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rated("a", Insult=6), r"In row 1 of r, 'Insult' is 6, not a rating from 1 to 5; correct or remove the row\."),
        (rated("a", Toxicity=0.5), "'Toxicity' is 0.5, not a rating"),
        (rated("a", Toxicity="high"), "'Toxicity' is 'high', not a rating"),
        (rated("a", Toxicity=True), "'Toxicity' is True, not a rating"),
        (rated("a", "XX"), "In row 1 of r, 'Locale' is 'XX', not a language such as en, de or pt-BR"),
        (rated(5), "In row 1 of r, 'Prompt' is 5, not a text"),
    ],
)
def test_wrong_values_of_rtp_lx_are_named(row, message):
    with pytest.raises(ToxlocError, match=message):
        rtp_lx_prompts([rated("Die Suppe"), row], "r", None)


def test_the_toxicity_of_the_prompt_comes_before_that_of_the_text():
    rows = [
        web("ein Weg", toxicity=0.9, prompt_perspective=perspective(0.25)),
        web("zwei Wege", toxicity=0.9),
        web("drei Wege", prompt_toxicity=0.75, prompt_perspective=perspective(0.25)),
        web("vier Wege", prompt_perspective=None),
    ]
    prompts = polyglotoxicityprompts(rows, "p", None)
    assert prompts.texts == ["ein Weg", "zwei Wege", "drei Wege"]
    assert prompts.scores == [0.25, 0.9, 0.75]
    assert prompts.kinds == ["everyday", "provocative", "provocative"]
    assert prompts.categories is None


@pytest.mark.parametrize(
    ("columns", "name", "language"),
    [
        ({"lang": "nl", "meta_data": {"lang": "en"}}, "p", "nl"),
        ({"meta_data": {"lang": "pl", "url": "x"}, "prompt_perspective": perspective(0.1, "cs")}, "p", "pl"),
        ({"meta_data": {"language": "Swedish"}}, "p", "sv"),
        ({"meta_data": "{'lang': 'sv'}", "prompt_perspective": perspective(0.1, "cs")}, "p", "cs"),
        ({"meta_data": None}, "ptp-it.jsonl", "it"),
        ({"meta_data": {"lang": None}}, "PolygloToxicityPrompts:wildchat-ko", "ko"),
        ({}, "p", "und"),
    ],
)
def test_the_language_of_a_web_prompt(columns, name, language):
    assert polyglotoxicityprompts([web("a b", toxicity=0.1) | columns], name, None).languages == [language]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"toxicity": 1.5}, r"In row 0 of p, 'toxicity' is 1\.5, not a score from 0 to 1"),
        ({"toxicity": 0.5, "lang": "xx"}, "In row 0 of p, 'lang' is 'xx', not a language"),
        ({"toxicity": 0.5, "prompt": 5}, "In row 0 of p, 'prompt' is 5, not a text"),
    ],
)
def test_wrong_values_of_web_prompts_are_named(columns, message):
    with pytest.raises(ToxlocError, match=message):
        polyglotoxicityprompts([web("a") | columns], "p", None)


@pytest.mark.parametrize("selection", [None, "all", "toxic", "nontoxic", "challenging"])
def test_selections(selection):
    toxic, mild = [rated("a", Toxicity=3), web("a", toxicity=0.5)], [rated("b"), web("b", toxicity=0.49)]
    for read, rows in zip((rtp_lx_prompts, polyglotoxicityprompts), zip(toxic, mild, strict=True), strict=True):
        if selection == "challenging":
            with pytest.raises(ToxlocError, match="r has no challenging prompts; prompts of this layout are not"):
                read(rows, "r", selection)
        else:
            texts = {"toxic": ["a"], "nontoxic": ["b"]}.get(selection, ["a", "b"])
            assert read(rows, "r", selection).texts == texts


def test_no_scored_prompt_is_an_error():
    with pytest.raises(ToxlocError, match=r"^r has no scored prompts\.$"):
        rtp_lx_prompts([rated("NA")], "r", None)
    with pytest.raises(ToxlocError, match=r"^r has no toxic prompts\.$"):
        rtp_lx_prompts([rated("a")], "r", "toxic")


def test_layouts_are_told_apart():
    assert is_rtp_lx(rated("a")) and is_rtp_lx(rated("a", key="PromptAnnotations"))
    assert not is_rtp_lx({"Prompt": "a", "Locale": "DE"}) and not is_rtp_lx(rated("a") | {"Annotations": "none"})
    assert is_polyglotoxicityprompts(web("a")) and is_polyglotoxicityprompts(
        {"prompt": "a", "prompt_perspective": None}
    )
    assert not is_polyglotoxicityprompts({"prompt": "a", "toxicity": 0.5})
    assert not is_polyglotoxicityprompts({"prompt": {"text": "a"}, "toxicity_bucket": 1})


def test_files_of_both_layouts_are_recognised(tmp_path):
    lines = [rated("Die Suppe"), rated("Du bist so", Toxicity=4.0, Insult=3.0)]
    (tmp_path / "RTP_LX_DE.json").write_text("\n".join(map(json.dumps, lines)))
    prompts = load_prompts(str(tmp_path / "RTP_LX_DE.json"))
    assert (prompts.languages, prompts.categories) == (["de", "de"], ["none", "Insult"])
    assert load_prompts(str(tmp_path / "RTP_LX_DE.json"), which="toxic").texts == ["Du bist so"]
    (tmp_path / "ptp-sv.jsonl").write_text(json.dumps(web("Vi åt soppa och ", toxicity=0.1)))
    prompts = load_prompts(str(tmp_path / "ptp-sv.jsonl"))
    assert (prompts.texts, prompts.languages, prompts.scores) == (["Vi åt soppa och"], ["sv"], [0.1])


def test_a_named_column_makes_a_plain_table_of_them(tmp_path):
    path = tmp_path / "ptp-sv.jsonl"
    path.write_text(json.dumps(web("Vi åt", lang="sv", topic="food", toxicity=0.1)))
    prompts = load_prompts(str(path), text_column="text", category_column="topic")
    assert (prompts.texts, prompts.categories) == (["Vi åt and more text"], ["food"])
    assert (prompts.languages, prompts.scores) == (["sv"], None)
