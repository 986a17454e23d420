import re

import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.models.sites import BySite, Site, sites_of, unit_of


def test_an_integer_means_the_mlp_and_a_name_means_its_site():
    assert Site.of(3) == Site.of(np.int64(3)) == Site.of("3.mlp") == Site(3) == Site(3, "mlp")
    assert Site.of("12.attention") == Site(12, "attention") != Site(12, "mlp")
    assert Site.of(Site(1, "attention")) == Site(1, "attention")
    assert type(Site.of(np.int64(3)).layer) is int


@pytest.mark.parametrize("site", [Site(0), Site(12, "attention"), Site(3, "expert", 17), Site(1, "shared_expert")])
def test_the_name_of_a_site_gives_the_same_site(site):
    assert Site.of(str(site)) == site


@pytest.mark.parametrize(
    "wrong",
    [
        True,
        3.0,
        None,
        (3, "mlp"),
        "",
        "3",
        "attention",
        "3.mlps",
        "-1.mlp",
        "x.mlp",
        "².mlp",
        "3.mlp.0",
        "3.expert",
        "3.expert.",
        "3.expert.-1",
    ],
)
def test_a_value_that_is_not_a_site_is_named_with_the_fix(wrong):
    with pytest.raises(ToxlocError, match=rf"{re.escape(repr(wrong))} is not a site; .*'3\.attention'"):
        Site.of(wrong)


def test_the_error_of_an_unknown_part_lists_the_parts():
    with pytest.raises(ToxlocError, match=r"part 'router' .* mlp, attention, mixer, expert, shared_expert"):
        Site(0, "router")


@pytest.mark.parametrize(("part", "expert"), [("expert", None), ("mlp", 0), ("shared_expert", 3)])
def test_only_an_expert_has_the_number_of_an_expert_and_always_has(part, expert):
    with pytest.raises(ToxlocError, match=rf"part '{part}' cannot have expert={expert}; .*Site\(3, 'expert', 5\)"):
        Site(0, part, expert)


def test_titles_name_the_part_unless_it_is_the_mlp():
    assert [Site(2).title, Site(2, "attention").title] == ["layer 2", "layer 2, attention"]
    titles = [Site(2, "expert", 5).title, Site(2, "shared_expert").title]
    assert titles == ["layer 2, expert 5", "layer 2, shared expert"]


def test_the_site_of_a_unit_is_converted():
    assert unit_of((3, 17)) == (Site(3), 17)
    assert unit_of(("3.attention", 1)) == (Site(3, "attention"), 1)


def test_sites_are_sorted_without_duplicates():
    attention = Site(0, "attention")
    assert sites_of([2, "0.attention", 0, attention, Site(2)]) == [attention, Site(0), Site(2)]
    assert sites_of(2) == [Site(2)]
    assert sites_of("1.attention") == [Site(1, "attention")]
    assert sites_of([]) == []


def test_a_mapping_by_site_accepts_numbers_and_names():
    by_site = BySite({Site(3): "W_out", Site(3, "attention"): "W_O"})
    assert by_site[3] == by_site["3.mlp"] == by_site[Site(3)] == "W_out"
    assert by_site["3.attention"] == "W_O"
    assert 3 in by_site and "3.attention" in by_site and Site(3) in by_site
    assert 4 not in by_site and "4.attention" not in by_site
    with pytest.raises(KeyError):
        by_site[4]
