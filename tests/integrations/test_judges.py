import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.registry import DEFAULT
from toxloc.integrations.judges import get_judges


def test_names_are_read_from_a_list_or_from_one_text():
    for wanted in (["toxloc-rtp", "profanity-check@0.7"], " toxloc-rtp, profanity-check@0.7,"):
        assert [(judge.name, judge.threshold) for judge in get_judges(wanted)][1] == ("profanity-check", 0.7)


def test_the_default_is_the_default_of_toxloc():
    assert [judge.name for judge in get_judges()] == list(DEFAULT)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("toxloc-rtp,nobody", "no evaluator 'nobody'"), ("", "At least one evaluator"), ([], "At least one evaluator")],
)
def test_names_that_cannot_be_used_are_refused(wanted, message):
    with pytest.raises(ToxlocError, match=message):
        get_judges(wanted)
