from dataclasses import replace

import pytest

from toxloc import ContrastSet, ToxlocError, load_contrast
from toxloc.localization.first_difference import FirstDifference, first_differences, first_differences_of

TOXIC = ["They are all fools.", "Such a liar", "You are late", "We are here today", "It is a dull day."]
NEUTRAL = ["They are all here now.", "Oh my friend", "You are late", "We are here", "It is a fine day."]
PAIRS = ContrastSet(TOXIC, NEUTRAL, paired=True)


def test_prefixes_and_endings_are_the_tokens_of_the_texts(lm):
    differences = first_differences(lm, PAIRS)
    assert [d.pair for d in differences.usable] == [0, 4]
    for d in differences.usable:
        toxic, neutral = ([0, *lm.tokenizer(side[d.pair])["input_ids"]] for side in (TOXIC, NEUTRAL))
        assert list(d.prefix + d.toxic) == toxic
        assert list(d.prefix + d.neutral) == neutral
        assert d.toxic[0] != d.neutral[0]
    assert lm.tokenizer.decode(differences.usable[0].prefix[1:]) == "They are all"


def test_pairs_without_a_first_difference_are_counted(lm):
    differences = first_differences(lm, PAIRS)
    assert (differences.differ_early, differences.without_difference) == (1, 2)


def test_a_prefix_of_two_tokens_is_enough_and_of_one_is_not(lm):
    word = "They are"
    assert len(lm.tokenizer(word)["input_ids"]) == 2
    two = ContrastSet([f"{word} fools", f"{word} liars"], [f"{word} here", f"{word} friends"], paired=True)
    assert [len(d.prefix) for d in first_differences(lm, two).usable] == [3, 3]
    less = ContrastSet(["They fool us", "They are liars"], ["They help us", "They come here"], paired=True)
    with pytest.raises(ToxlocError, match=r"Only 0 of the 2 pairs of 'custom'.* 2 share fewer than 2 tokens"):
        first_differences(lm, less)


def test_a_difference_beyond_the_largest_length_is_none(lm):
    long = ContrastSet(
        [f"They are {'very ' * 8}dull", "They are fools", "He is a fool"],
        [f"They are {'very ' * 8}nice", "They are here", "He is a man"],
        paired=True,
    )
    assert first_differences(lm, long).without_difference == 0
    assert [(d.pair, len(d.prefix)) for d in first_differences(lm, long, max_length=6).usable][:1] == [(1, 3)]
    assert first_differences(lm, long, max_length=6).without_difference == 1


def test_an_unpaired_set_is_refused(lm):
    with pytest.raises(ToxlocError, match="'custom' is not paired"):
        first_differences(lm, ContrastSet(TOXIC, NEUTRAL))


def test_most_built_in_pairs_are_usable(lm):
    pairs = load_contrast("builtin")
    differences = first_differences(lm, pairs)
    assert (len(pairs.toxic), len(differences.usable), differences.differ_early, differences.without_difference) == (
        520,
        362,
        158,
        0,
    )


GIVEN = {
    "prompts": ["They hate you. You are", "She hates him. He is"],
    "toxic_words": [" stupid", " an idiot"],
    "neutral_words": [" here", " the baker"],
    "counterfactual_prompts": ["They like you. You are", "She likes him. He is"],
}


def test_prompts_with_given_words(lm):
    given = first_differences_of(lm, **GIVEN)
    ids = [[0, *lm.tokenizer(text)["input_ids"]] for text in ("She hates him. He is", "She likes him. He is")]
    second = given.usable[1]
    assert second == FirstDifference(
        1,
        tuple(ids[0]),
        tuple(lm.tokenizer(" an idiot")["input_ids"]),
        tuple(lm.tokenizer(" the baker")["input_ids"]),
        tuple(ids[1]),
    )
    assert (len(given.usable), given.n_left_out, given.have_counterfactuals) == (2, 0, True)
    plain = first_differences_of(lm, *list(GIVEN.values())[:3])
    assert not plain.have_counterfactuals
    assert plain.usable[1] == replace(second, counterfactual=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"toxic_words": [" stupid"]}, "1 toxic_words and 2 prompts were given"),
        ({name: values[:1] for name, values in GIVEN.items()}, "give as many, 2 or more"),
        ({"prompts": "They"}, "was given for prompts; give a list"),
        ({"toxic_words": ["", " an idiot"]}, "does not split text 0 at the end of its prompt, 'They hate you"),
        ({"neutral_words": [" here", " an apple"]}, "The continuations of prompt 1 begin with the same token"),
        (
            {"counterfactual_prompts": ["They really like you. You are", GIVEN["prompts"][1]]},
            "Prompt 0 has 7 tokens and its counterfactual prompt 8",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_in_given_prompts_end_in_a_sentence(lm, changes, message):
    with pytest.raises(ToxlocError, match=message):
        first_differences_of(lm, **GIVEN | changes)
