import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc.support.masking import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("", ""),
        ("I am a fool.", "I a· a f···."),
        ("Shut\n  UP, you-know-who!!", "S···\n  U·, y··-k···-w··!!"),
        ("don't 1d10t n00b", "d··'· 1d10· n00·"),
        (" naïve", " n····"),
        ("nai\u0308ve", "n·····"),
        ("मूर्ख", "म····"),
        ("<|endoftext|>", "<|e········|>"),
        ("3 a_b 'tis'", "3 a_· 't··'"),
    ],
)
def test_mask_keeps_first_letters_and_lengths(text, masked):
    assert mask(text) == masked
    assert len(masked) == len(text)


@given(st.text())
def test_masking_twice_changes_nothing_more_and_hides_only_letters(text):
    masked = mask(text)
    assert mask(masked) == masked
    hidden = [(a, b) for a, b in zip(text, masked, strict=True) if a != b]
    assert all(unicodedata.category(a)[0] in "LM" and b == "·" for a, b in hidden)
