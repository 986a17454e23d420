from collections import Counter

import pytest

from toxloc import PromptSet, ToxlocError, load_prompts


def test_a_split_is_complete_and_without_overlap():
    prompts = PromptSet([f"opening {i}" for i in range(9)], ["a"] * 4 + ["b"] * 5)
    first, second = prompts.split(0.4, seed=2)
    assert (len(first), len(second)) == (4, 5)
    assert {*first.texts} | {*second.texts} == {*prompts.texts}
    for part in (first, second):
        assert part.kinds == ["a" if int(t[-1]) < 4 else "b" for t in part.texts]
    assert prompts.split(0.4, seed=2)[0].texts == first.texts
    with pytest.raises(ToxlocError, match="is empty"):
        PromptSet(["one"]).split(0.5)


def test_limits_are_per_kind_and_keep_the_order():
    prompts = load_prompts()
    few = prompts.limited(3)
    assert Counter(few.kinds) == {"provocative": 3, "everyday": 3}
    assert [prompts.texts.index(text) for text in few.texts] == sorted(prompts.texts.index(text) for text in few.texts)
    assert len(prompts.sampled(7)) == 7


def test_longer_texts_are_truncated_and_shorter_ones_and_duplicates_dropped():
    prompts = PromptSet(["a b c", "a b", "x  y z", "a b d"], ["k", "l", "m", "n"], [0.1, 0.2, 0.3, 0.4])
    assert prompts.cut(2) == PromptSet(["a b", "x y"], ["k", "m"], [0.1, 0.3])
    with pytest.raises(ToxlocError, match="more than 3 words"):
        prompts.cut(3)


def test_empty_sets_and_texts():
    with pytest.raises(ToxlocError, match="is empty"):
        PromptSet([])
    with pytest.raises(ToxlocError, match="number 1"):
        PromptSet(["a", " "])


@pytest.mark.parametrize("count", [0, -1, 2.5, None])
def test_a_count_is_a_whole_number(unchecked, count):
    for draw in (PromptSet(["a", "b"]).sampled, PromptSet(["a", "b"]).limited, PromptSet(["a b c d"]).cut):
        with pytest.raises(ToxlocError, match=f"={count!r}: give a whole number, 1 or more"):
            draw(count)


@pytest.mark.parametrize("fraction", [float("nan"), 1.5, -0.5, "half"])
def test_a_fraction_is_between_0_and_1(unchecked, fraction):
    with pytest.raises(ToxlocError, match=f"fraction={fraction!r} is out of range"):
        PromptSet(["a", "b", "c"]).split(fraction)


SEVERAL = PromptSet(
    [f"opening number {i}" for i in range(6)],
    ["provocative", "everyday"] * 3,
    [0.1 * i for i in range(6)],
    "several",
    ["DE", "pt-BR", "zh-Hans", "en", "de-CH", "und"],
    [f"category {i}" for i in range(6)],
)


def test_languages_become_codes():
    assert SEVERAL.languages == ["de", "pt", "zh", "en", "de", "und"]


@pytest.mark.parametrize(
    "fewer",
    [
        lambda p: p.take([4, 0]),
        lambda p: p.only("everyday"),
        lambda p: p.sampled(3, seed=1),
        lambda p: p.limited(2, seed=1),
        lambda p: p.split(0.5, seed=1)[0],
        lambda p: p.split(0.5, seed=1)[1],
        lambda p: p.cut(2),
    ],
)
def test_every_prompt_keeps_its_language_category_kind_and_score(fewer):
    part = fewer(SEVERAL)
    for i, text in enumerate(part.texts):
        j = int(text[-1]) if text[-1].isdigit() else 0  # `cut` keeps the first of several duplicates
        assert part.languages[i] == SEVERAL.languages[j]
        assert part.categories[i] == f"category {j}"
        assert part.kinds[i] == SEVERAL.kinds[j]
        assert part.scores[i] == SEVERAL.scores[j]
    assert part.name == "several"


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (
            "languages",
            ["de"],
            "languages of the prompt set 'custom' must be a string for each of the 2 texts; there are 1",
        ),
        ("languages", ["de", 5], "languages .* 5 is not"),
        ("languages", ["de", None], "languages .* None is not"),
        ("languages", ["de", "xx"], "'xx' is not a language; write its ISO 639-1 code"),
        ("languages", "de", "The string 'de' was given for the languages"),
        ("categories", ["a"], "categories of the prompt set 'custom' must be a string for each of the 2 texts"),
        ("categories", ["a", ""], "categories .* '' is not"),
        ("categories", ["a", 1], "categories .* 1 is not"),
    ],
)
def test_wrong_languages_and_categories_are_refused(unchecked, field, values, message):
    with pytest.raises(ToxlocError, match=message):
        PromptSet(["a", "b"], **{field: values})
