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
