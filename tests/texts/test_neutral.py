import pytest

from toxloc import NeutralText, ToxlocError


def test_neutral_text_is_divided_without_overlap():
    neutral = NeutralText.split([f"text {i}" for i in range(100)], seed=4)
    assert [len(neutral.fit), len(neutral.tune), len(neutral.check)] == [30, 35, 35]
    assert len({*neutral.fit, *neutral.tune, *neutral.check}) == 100
    with pytest.raises(ToxlocError, match=r"at least 12.* has 1"):
        NeutralText.split(["a"] * 50)
