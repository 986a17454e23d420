import random

import pytest

from toxloc import ToxlocError
from toxloc.texts.drawing import check_fraction, check_texts, shuffled


def test_an_order_depends_on_count_and_seed_and_nothing_else():
    random.seed(5)
    first = shuffled(50, seed=3)
    random.seed(6)
    assert shuffled(50, seed=3) == first
    assert sorted(first) == list(range(50))
    assert shuffled(50, seed=4) != first
    assert shuffled(0, seed=0) == []


@pytest.mark.parametrize("bad", ["", " \n", 3])
def test_the_position_of_a_bad_text_is_given(bad):
    check_texts(["a", "b"], "the list")
    with pytest.raises(ToxlocError, match="number 1 of the list is empty"):
        check_texts.__wrapped__(["a", bad], "the list")


def test_blank_texts_can_be_accepted():
    assert check_texts(("a", " "), "the list", may_be_blank=True) == ["a", " "]


def test_characters_of_every_plane_and_nul_are_accepted():
    texts = ["a\0b", "😀", "\uffff", "\U0010ffff"]
    assert check_texts(texts) == texts


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfff c"])
def test_the_place_of_a_lone_surrogate_is_given(text):
    with pytest.raises(ToxlocError, match=r"number 1 of the list has the lone surrogate '\\ud\w+' at character 2"):
        check_texts(["a", text], "the list")


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_a_fraction_leaves_texts_on_both_sides(fraction):
    check_fraction(0.5)
    with pytest.raises(ToxlocError, match="out of range; give a number between 0 and 1"):
        check_fraction(fraction)
