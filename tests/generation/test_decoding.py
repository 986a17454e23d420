import pytest

from toxloc import ToxlocError
from toxloc.generation.decoding import Decoding


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(samples=0), "samples=0 .*at least 1"),
        (dict(max_new_tokens=0), "max_new_tokens=0 .*at least 1"),
        (dict(top_p=0.0), r"top_p=0\.0 .*above 0 and at most 1"),
        (dict(top_p=1.01), r"top_p=1\.01 .*above 0 and at most 1"),
        (dict(temperature=-1.0), r"temperature=-1\.0 .*at least 0"),
        (dict(temperature=float("nan")), "temperature=nan .*at least 0"),
        (dict(repetition_penalty=0.0), r"repetition_penalty=0\.0 .*above 0"),
    ],
)
def test_values_out_of_range_are_named_with_the_range(bad, message):
    with pytest.raises(ToxlocError, match=message):
        Decoding(**bad)


def test_the_ends_of_the_ranges_are_valid_and_are_returned():
    options = dict(samples=1, max_new_tokens=1, top_p=1.0, temperature=0.0, repetition_penalty=0.5)
    assert Decoding(**options).to_dict() == options
    assert Decoding(**Decoding().to_dict()) == Decoding()
