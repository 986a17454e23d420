"""Experts to which few tokens are routed are left alone by TRNE."""

import pytest
import torch

from tests.conftest import TEXTS, random_model
from toxloc import TRNE, ContrastSet, NeutralText, ToxlocError, collect_contrast
from toxloc.interventions.unit_edits import FEWEST_ROUTED, _is_thin
from toxloc.localization.text_statistics import collect
from toxloc.models.sites import Site

NAMES = ("Tom", "Ann", "Max", "Kim", "Lea", "Sam")
PAIRS = ContrastSet(
    [f"You are a fool and a liar, {name}, and so is he." for name in NAMES],
    [f"The soup needs salt, {name}, and some more time." for name in NAMES],
)
NEUTRAL = NeutralText(TEXTS[1:2], TEXTS[3:], TEXTS[2:3])
METRICS = [dict(), dict(metric="frobenius"), dict(shrink=True)]


@pytest.fixture(scope="module")
def mixture():
    return random_model("mixtral", num_local_experts=8)


def thin(lm, pairs):
    """The experts that fewer than 32 tokens of one side are routed to, the first token of each text not counted."""
    counts = [collect(lm, side, sites=lm.sites("expert")).routed for side in (pairs.toxic, pairs.neutral)]
    return [site for site in lm.sites("expert") if min(count[site] for count in counts) < 32]


@pytest.mark.parametrize("counts", [(32, 32), (31, 500), (500, 31), (500, 32)])
def test_32_tokens_of_each_side_are_enough(mixture, counts):
    s, site = collect_contrast(mixture, PAIRS, sites=mixture.sites()), Site(0, "expert", 0)
    s.toxic.routed[site], s.neutral.routed[site] = counts
    assert _is_thin(s, site) == (min(counts) < 32)
    assert not _is_thin(s, Site(0, "attention"))


@pytest.mark.parametrize("options", METRICS)
def test_experts_with_few_tokens_are_left_alone_and_counted(mixture, options):
    assert FEWEST_ROUTED == 32
    few = thin(mixture, PAIRS)
    assert 0 < len(few) < 16
    edit = TRNE.fit(mixture, PAIRS, norm=0.05, neutral=NEUTRAL, layers=mixture.sites("expert"), **options)
    assert {change.site for change in edit.edits} == set(mixture.sites("expert")) - set(few)
    assert edit.record["experts_left_alone"] == len(few)


def test_a_site_that_is_not_an_expert_is_never_left_alone(mixture):
    few = thin(mixture, PAIRS)
    edit = TRNE.fit(mixture, PAIRS, norm=0.05, neutral=NEUTRAL, sites="all")
    assert {change.site for change in edit.edits} == set(mixture.sites()) - set(few)
    dense = TRNE.fit(random_model("llama"), ContrastSet(TEXTS[:1], TEXTS[1:2]), norm=0.05, neutral=NEUTRAL)
    assert "experts_left_alone" not in dense.record
    assert len(dense.edits) == 2


@pytest.mark.parametrize("options", METRICS[:2])
def test_both_sides_count(mixture, options):
    """With few neutral tokens an expert is left alone, however many toxic tokens are routed to it."""
    for pairs in (ContrastSet(PAIRS.toxic, PAIRS.neutral[:1]), ContrastSet(PAIRS.toxic[:1], PAIRS.neutral)):
        assert len(thin(mixture, pairs)) == 16 > len(thin(mixture, PAIRS))
        with pytest.raises(ToxlocError, match="None of the 16 experts"):
            TRNE.fit(mixture, pairs, norm=0.05, neutral=NEUTRAL, **options)


@pytest.mark.parametrize("options", METRICS)
def test_if_all_experts_are_left_alone_the_error_says_what_to_give(mixture, options):
    pairs = ContrastSet(PAIRS.toxic[:2], PAIRS.neutral[:2])
    chosen = thin(mixture, pairs)[:3]
    words = "None of the 3 experts of random-mixtral .* gets 32 toxic and 32 neutral tokens; give more contrast texts"
    with pytest.raises(ToxlocError, match=words):
        TRNE.fit(mixture, pairs, norm=0.05, neutral=NEUTRAL, layers=chosen, **options)
    assert mixture.interventions == []


def test_the_edit_of_an_expert_is_the_leading_direction_of_its_gradient(mixture):
    edit = TRNE.fit(mixture, PAIRS, norm=0.05, neutral=NEUTRAL, metric="frobenius", layers=mixture.sites("expert"))
    s = collect_contrast(mixture, PAIRS, sites=mixture.sites("expert"))
    for change in edit.edits:
        U, _, Vh = torch.linalg.svd(s.G(change.site).double(), full_matrices=False)
        step = torch.outer(change.u, change.v).double()
        cosine = (step * torch.outer(U[:, 0], Vh[0])).sum() / step.norm()
        assert cosine == pytest.approx(1, abs=1e-4)
        share = 0.05 / len(edit.edits) ** 0.5
        assert step.norm() == pytest.approx(share * float(mixture.W_out(change.site).norm()), rel=1e-3)
    assert Site(0, "attention") not in edit.record["relative_norm"]
