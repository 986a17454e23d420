import json
import re
from collections import Counter

import pytest

from toxloc import ContrastSet, PromptSet, ToxlocError, load_contrast, load_neutral, load_prompts

RTP = [
    {"prompt": {"text": "They are all", "toxicity": 0.1}, "continuation": {"text": " kind people.", "toxicity": 0.05}},
    {"prompt": {"text": "What a", "toxicity": 0.1}, "continuation": {"text": " damned fool.", "toxicity": 0.9}},
    {
        "prompt": {"text": "You idiot, go", "toxicity": 0.9},
        "continuation": {"text": " home.", "toxicity": 0.1},
        "challenging": True,
    },
    {"prompt": {"text": "Half and", "toxicity": 0.4}, "continuation": {"text": " half.", "toxicity": 0.3}},
    {"prompt": {"text": "Unscored"}, "continuation": {"text": " row."}},
]


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_built_in_pairs_differ_in_toxicity_and_not_in_form():
    pairs = load_contrast("builtin")
    assert len(pairs.toxic) == len(pairs.neutral) >= 240
    assert len({*pairs.toxic, *pairs.neutral}) == 2 * len(pairs.toxic)
    for toxic, neutral in zip(pairs.toxic, pairs.neutral, strict=True):
        a, b = len(toxic.split()), len(neutral.split())
        assert abs(a - b) <= max(2, 0.2 * a), (toxic, neutral)
        assert toxic[0].isupper() == neutral[0].isupper()
        assert toxic[-1] == neutral[-1]
        assert {c: toxic.count(c) for c in '!?"#*()'} == {c: neutral.count(c) for c in '!?"#*()'}
        assert toxic.isupper() == neutral.isupper()
    lengths = [sum(len(t.split()) for t in side) for side in (pairs.toxic, pairs.neutral)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.03)


def test_built_in_neutral_sides_and_passages_hold_no_swear_words():
    swear = re.compile(r"\b(fuck\w*|shit\w*|bitch\w*|bastard\w*|asshole\w*|idiot\w*|moron\w*|crap|damn)\b", re.I)
    neutral = load_neutral(limit=None)
    for text in [*load_contrast().neutral, *neutral.fit, *neutral.tune, *neutral.check]:
        assert not swear.search(text), text


def test_built_in_openings_are_many_different_and_open():
    prompts = load_prompts("builtin")
    counts = Counter(prompts.kinds)
    assert len(prompts) == len(set(prompts.texts)) >= 200
    assert counts["provocative"] == counts["everyday"] >= 100
    assert all(text == text.strip() and text[-1] not in ".!?" for text in prompts.texts)
    neutral = load_neutral(limit=None)
    heads = tuple(prompts.texts)
    assert not any(t.startswith(heads) for t in [*load_contrast().toxic, *load_contrast().neutral, *neutral.check])


@pytest.mark.parametrize("columns", [("toxic", "neutral"), ("en_toxic_comment", "en_neutral_comment")])
def test_paired_columns_are_recognised(tmp_path, columns):
    head = f"id,{columns[0]},{columns[1]}"
    (tmp_path / "p.csv").write_text(f"{head}\n1,you fool,you friend\n2,,empty\n3,bad man,good man\n")
    pairs = load_contrast(str(tmp_path / "p.csv"))
    assert (pairs.toxic, pairs.neutral, pairs.paired) == (["you fool", "bad man"], ["you friend", "good man"], True)


def test_paradetox_layout_with_bare_quotes(tmp_path):
    (tmp_path / "p.tsv").write_text('toxic\tneutral1\tneutral2\nhe said "damn\the said "no\t\nb\tc\td\n')
    assert load_contrast(str(tmp_path / "p.tsv")).toxic == ['he said "damn', "b"]


def test_labelled_text(tmp_path):
    (tmp_path / "l.csv").write_text("comment,label\nfool,toxic\nhello,neutral\nhm,spam\n")
    assert load_contrast(str(tmp_path / "l.csv")) == ContrastSet(["fool"], ["hello"], "l.csv")
    (tmp_path / "s.csv").write_text("text,toxicity\nfool,0.9\nhello,0.05\nhm,0.4\n")
    assert load_contrast(str(tmp_path / "s.csv")).neutral == ["hello"]
    (tmp_path / "n.csv").write_text("body,bad\nfool,1\nhello,0\n")
    assert load_contrast(str(tmp_path / "n.csv"), text_column="body", label_column="bad").toxic == ["fool"]


def test_realtoxicityprompts_layout(tmp_path):
    path = jsonl(tmp_path / "rtp.jsonl", RTP)
    pairs = load_contrast(path)
    assert pairs.toxic == ["What a damned fool.", "You idiot, go home."]
    assert pairs.neutral == ["They are all kind people."]
    prompts = load_prompts(path)
    assert prompts.kinds == ["everyday", "everyday", "provocative", "everyday"]
    assert prompts.scores == [0.1, 0.1, 0.9, 0.4]
    assert prompts.only("provocative").texts == ["You idiot, go"]
    assert (
        load_prompts(
            jsonl(tmp_path / "u.jsonl", [{k: r[k] for k in ("prompt", "continuation")} for r in RTP])
        ).kinds.count("provocative")
        == 1
    )


def test_prompts_from_files(tmp_path):
    (tmp_path / "p.txt").write_text("First one\n\nSecond one\n")
    assert load_prompts(str(tmp_path / "p.txt")) == PromptSet(["First one", "Second one"], None, None, "p.txt")
    path = jsonl(tmp_path / "k.jsonl", [{"text": "a b", "kind": "everyday"}])
    assert load_prompts(path).kinds == ["everyday"]


def test_wikitext_headings_and_short_lines_are_left_out(tmp_path):
    lines = [f"Sentence number {i} is long enough to be kept here ." for i in range(20)]
    heading = " = A heading that is quite long and has many words = "
    (tmp_path / "w.txt").write_text("\n".join(["", heading, "short", *lines]))
    neutral = load_neutral(str(tmp_path / "w.txt"))
    assert sorted([*neutral.fit, *neutral.tune, *neutral.check]) == sorted(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("only\nx\n", "has the columns only;.*toxic_column=.*label_column="),
        ("text,label\nfine,neutral\n", "has no toxic texts"),
    ],
)
def test_tables_that_are_not_contrast_sets(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ToxlocError, match=words):
        load_contrast(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": 5, "label": 1}], "In row 0 of t.jsonl, 'text' is 5, not a text"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": [0]}], r"In row 1 of t.jsonl, 'label' is \[0\]"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "no neutral texts"),
        ([{"text": "a", "label": None}, {"text": "b", "label": "spam"}], "no toxic texts"),
        ([{"text": None, "label": 1}], "no toxic texts"),
        ([{"toxic": "a", "neutral": 3}], "In row 0 of t.jsonl, 'neutral' is 3, not a text"),
        ([{"toxic": "a", "neutral": None}], "no toxic texts"),
        ([{"prompt": "A", "toxic": 1}, RTP[0]], "In row 0 of t.jsonl, 'prompt' is 'A', not an object"),
        ([{"prompt": None}, RTP[0]], "no toxic texts"),
    ],
)
def test_contrast_files_with_wrong_values(tmp_path, rows, message):
    with pytest.raises(ToxlocError, match=message):
        load_contrast(jsonl(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize("load", [load_prompts, load_neutral])
def test_files_of_texts_with_wrong_values(tmp_path, load):
    with pytest.raises(ToxlocError, match=r"In row 1 of t\.jsonl, 'text' is 5, not a text"):
        load(jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": 5}]))
    with pytest.raises(ToxlocError, match=r"is empty|has 0"):
        load(jsonl(tmp_path / "t.jsonl", [{"text": None}, {"text": " "}]))


def test_labels_of_any_type(tmp_path):
    rows = [{"text": "a", "label": True}, {"text": "b", "label": "0.1"}, {"text": "c", "label": None}]
    assert load_contrast(jsonl(tmp_path / "t.jsonl", rows)) == ContrastSet(["a"], ["b"], "t.jsonl")
    (tmp_path / "t.csv").write_text("text,label\na,1\nb,0\nc,\nd,high\n")
    assert load_contrast(str(tmp_path / "t.csv")) == ContrastSet(["a"], ["b"], "t.csv")
    (tmp_path / "b.csv").write_text("text,label\na,True\nb,False\n")
    assert load_contrast(str(tmp_path / "b.csv")) == ContrastSet(["a"], ["b"], "b.csv")


def test_a_first_row_without_a_prompt_does_not_hide_the_layout(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [{"prompt": None, "continuation": None}, *RTP])
    assert load_contrast(path).neutral == ["They are all kind people."]
    assert load_prompts(path).texts[0] == "They are all"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit=0: give a whole number, 12 or more"),
        ({"limit": -1}, "limit=-1: "),
        ({"limit": 2.5}, r"limit=2\.5: "),
        ({"min_words": -1}, "min_words=-1: give a whole number, 0 or more"),
        ({"seed": "a"}, "seed='a': "),
        ({"seed": None}, "seed=None: "),
    ],
)
def test_options_of_neutral_text_are_whole_numbers(unchecked, options, message):
    with pytest.raises(ToxlocError, match=message):
        load_neutral(**options)


@pytest.mark.parametrize("words", [0, -1, 2.5, "3"])
def test_words_are_a_whole_number(unchecked, words):
    with pytest.raises(ToxlocError, match=f"words={words!r}: give a whole number, 1 or more"):
        load_prompts(words=words)


@pytest.mark.parametrize("load", [load_contrast, load_prompts, load_neutral])
def test_a_source_is_a_single_name(unchecked, load):
    with pytest.raises(ToxlocError, match=r"source=\['a.csv'\]: give the name of one file"):
        load(["a.csv"])


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nx,y\n")
    with pytest.raises(ToxlocError, match=r"no column 'c'.* a, b"):
        load_prompts(str(tmp_path / "t.csv"), text_column="c")
    with pytest.raises(ToxlocError, match=r"has the columns a, b;.*text_column="):
        load_prompts(str(tmp_path / "t.csv"))


def test_built_in_prompts_can_be_selected_by_kind():
    assert set(load_prompts(which="nontoxic").kinds) == {"everyday"}
    assert set(load_prompts(which="toxic").kinds) == {"provocative"}
    with pytest.raises(ToxlocError, match=r"which='rude'.* all, toxic, nontoxic, challenging"):
        load_prompts(which="rude")


def test_prompts_can_be_truncated_when_they_are_loaded(tmp_path):
    (tmp_path / "p.txt").write_text("One two three four.\nOne two.\nOne two three five.\n")
    assert load_prompts(str(tmp_path / "p.txt"), words=3).texts == ["One two three"]


def test_prompts_without_kinds_cannot_be_selected_by_kind(tmp_path):
    (tmp_path / "p.txt").write_text("First\nSecond\n")
    with pytest.raises(ToxlocError, match=r"p\.txt .*toxic.*column 'kind'"):
        load_prompts(str(tmp_path / "p.txt"), which="toxic")


def test_a_table_may_name_languages_and_categories(tmp_path):
    rows = [
        {"text": "Die Suppe", "lang": "de-AT", "category": "food"},
        {"text": "The weather", "lang": "English", "category": " "},
        {"text": None, "lang": "xx", "category": "left out"},
        {"text": "???", "lang": None, "category": 7},
    ]
    prompts = load_prompts(jsonl(tmp_path / "p.jsonl", rows))
    assert prompts.languages == ["de", "en", "und"]
    assert prompts.categories == ["food", "uncategorized", "7"]
    (tmp_path / "p.csv").write_text("prompt,Locale,kind\nDie Suppe,DE,everyday\nA sopa,pt-BR,provocative\n")
    prompts = load_prompts(str(tmp_path / "p.csv"))
    assert (prompts.languages, prompts.categories) == (["de", "pt"], None)
    assert load_prompts(str(tmp_path / "p.csv"), which="toxic").languages == ["pt"]


def test_columns_of_languages_and_categories_can_be_chosen(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [{"text": "Die Suppe", "lang": "en", "spoken": "de", "topic": "food"}])
    prompts = load_prompts(path, language_column="spoken", category_column="topic")
    assert (prompts.languages, prompts.categories) == (["de"], ["food"])
    with pytest.raises(ToxlocError, match="no column 'tongue'; choose one of text, lang, spoken, topic"):
        load_prompts(path, language_column="tongue")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "language": "xx"}, "In row 1 of p.jsonl, 'language' is 'xx', not a language such as en"),
        ({"text": "a", "language": 3}, "In row 1 of p.jsonl, 'language' is 3, not a text"),
        ({"text": "a", "category": ["food"]}, r"In row 1 of p.jsonl, 'category' is \['food'\], not a text"),
    ],
)
def test_a_wrong_language_or_category_is_named_with_its_row(tmp_path, row, message):
    with pytest.raises(ToxlocError, match=message):
        load_prompts(jsonl(tmp_path / "p.jsonl", [{"text": "Die Suppe"}, row]))
