import pytest

from toxloc.support.names import short_name


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("models/planted/layer3", "layer3"),
        ("models/planted/layer3/", "layer3"),
        ("org/name", "name"),
        ("toxloc-tiny", "toxloc-tiny"),
    ],
)
def test_the_last_part_is_the_short_name(source, short):
    assert short_name(source) == short
