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
