import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc.evaluation.evaluators.spelling import Spelling, normalise

WORDS = ["clown", "fool", "silly", "good", "ass", "so", "sos"]
SPELLING = Spelling(WORDS, ["clown", "fool"])


@pytest.mark.parametrize(
    "text",
    [
        "C L O W N",
        "c-l-o-w-n",
        "c.l.o.w.n",
        "clooown",
        "CLOWWWWN",
        "cl0wn",
        "c1own",
        "cl*wn",
        "cl**wn",
        "c#own",
        "cłown",
    ],
)
def test_a_disguised_word_is_repaired_or_left_alone(text):
    repaired = SPELLING.repaired(text)
    assert repaired == "clown" if text not in ("c1own", "cłown") else repaired == text


def test_words_of_signs_alone_are_read():
    assert SPELLING.repaired("You @$$, you f00l") == "you ass, you fool"


def test_only_known_words_are_made_from_signs_and_digits():
    text = "in 1984 it was $5 at 7:30, mp3, 3rd, a@b.com, @clown, covid19"
    assert SPELLING.repaired(text) == text
    assert SPELLING.repaired("50 505") == "50 505"


def test_repeats_become_one_letter_if_that_is_a_word():
    assert SPELLING.repaired("goood foool siiilly cooool assss") == "good fool silly cool ass"


def test_three_single_letters_are_joined_but_two_are_not():
    assert normalise("f o o l, a b, U.S.A. x") == "fool, a b, usa. x"


def test_a_mask_stands_for_one_or_two_letters_and_the_first_word_wins():
    assert Spelling([], ["cart", "coat"]).repaired("c*t c*rt") == "cart cart"
    assert Spelling([], ["carrot", "caret"]).repaired("c*t") == "c*t"
    assert Spelling([], ["caret"]).repaired("c*et c*t") == "caret c*t"


@given(st.text(max_size=60))
def test_any_text_is_repaired_without_an_error_and_twice_is_once_for_plain_words(text):
    assert isinstance(SPELLING.repaired(text), str)
    assert SPELLING.repaired("a clown and a fool") == "a clown and a fool"
