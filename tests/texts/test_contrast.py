import pytest

from toxloc import ContrastSet, ToxlocError, load_contrast


def test_split_is_disjoint_complete_seeded_and_keeps_pairs():
    pairs = ContrastSet([f"t{i}" for i in range(10)], [f"n{i}" for i in range(10)], paired=True)
    a, b = pairs.split(0.3, seed=1)
    assert (len(a.toxic), len(b.toxic)) == (3, 7)
    assert {*a.toxic, *b.toxic} == set(pairs.toxic)
    assert all(t[1:] == n[1:] for part in (a, b) for t, n in zip(part.toxic, part.neutral, strict=True))
    assert pairs.split(0.3, seed=1)[0] == a
    assert pairs.split(0.3, seed=2)[0] != a
    with pytest.raises(ToxlocError, match=r"fraction=1\.5"):
        pairs.split(1.5)
    with pytest.raises(ToxlocError, match="no toxic texts"):
        pairs.split(0.01)


def test_texts_that_begin_with_an_opening_are_left_out():
    pairs = ContrastSet(["You fool, go home", "He lied"], ["Good day", "you FOOL, stay", "Well"])
    assert pairs.without(["You fool"]) == ContrastSet(["He lied"], ["Good day", "Well"])
    paired = ContrastSet(["A b", "C d"], ["E f", "G h"], paired=True)
    assert paired.without(["G"]) == ContrastSet(["A b"], ["E f"], paired=True)


def test_limits_are_per_side_and_keep_pairs():
    pairs = load_contrast()
    few = pairs.limited(5)
    assert len(few.toxic) == 5
    neutral_of = dict(zip(pairs.toxic, pairs.neutral, strict=True))
    assert few.neutral == [neutral_of[text] for text in few.toxic]


def test_sides_must_have_texts_and_pairs_must_have_equal_lengths():
    with pytest.raises(ToxlocError, match="no neutral texts"):
        ContrastSet(["a"], [])
    with pytest.raises(ToxlocError, match="number 1 of the neutral side"):
        ContrastSet(["a"], ["b", " "])
    with pytest.raises(ToxlocError, match="not 1 and 2"):
        ContrastSet(["a"], ["b", "c"], paired=True)


@pytest.mark.parametrize("fraction", [float("nan"), 0, 1, -0.5, "half", None, True])
def test_a_fraction_is_between_0_and_1(unchecked, fraction):
    with pytest.raises(ToxlocError, match=f"fraction={fraction!r} is out of range"):
        load_contrast().split(fraction)


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", None, float("nan")])
def test_a_limit_is_a_whole_number(unchecked, count):
    with pytest.raises(ToxlocError, match=f"count={count!r}: give a whole number, 1 or more"):
        load_contrast().limited(count)


@pytest.mark.parametrize("seed", ["a", 1.5, None, -1])
def test_a_seed_is_a_whole_number(unchecked, seed):
    for draw in (lambda: load_contrast().split(0.5, seed), lambda: load_contrast().limited(3, seed)):
        with pytest.raises(ToxlocError, match=f"seed={seed!r}: give a whole number, 0 or more"):
            draw()


def test_openings_that_are_empty_are_refused():
    with pytest.raises(ToxlocError, match="number 1 of the openings is empty"):
        ContrastSet(["a"], ["b"]).without(["c", " "])
