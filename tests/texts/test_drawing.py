import random

import pytest

from toxloc import ToxlocError
from toxloc.texts.drawing import check_texts, shuffled


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
