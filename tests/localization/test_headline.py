import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plants import planted_model
from tests.conftest import TEXTS
from toxloc import ContrastSet, KnockoutTest, Localization, ToxlocError, confirm, load_contrast, localize
from toxloc.localization.headline import agrees, headline_of
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site

MLP, HEADS, OTHER = Site(2), Site(5, "attention"), Site(1)
VALUES = {OTHER: -0.9, MLP: 0.3, HEADS: 0.2}


@dataclass(frozen=True)
class Removed:
    sites: tuple[Site, ...]
    effect: float = 0.25
    effect_ci: tuple[float, float] = (0.125, 0.5)
    neutral_rise: float = 0.1
    breaks_model: bool = False
    units: tuple[tuple[Site, int], ...] = ()


def headline(mlp=1.0, heads=1.0, removals=(), values=VALUES):
    return headline_of("attribution", values, {OTHER: 0.001, MLP: mlp, HEADS: heads}, removals)


def test_no_site_stands_out_without_a_p_value_below_five_percent():
    result = headline(0.312, 0.4, [Removed((MLP,)), Removed((HEADS,))])
    assert (result.stands_out, result.site, result.part, result.p_adjusted) == (False, MLP, "mlp", 0.312)
    assert result.text == "No single site stands out (adjusted p .31)."
    assert not headline(0.05, removals=[Removed((MLP,))]).stands_out
    assert headline(0.0499, removals=[Removed((MLP,))]).stands_out


def test_the_p_value_of_the_headline_is_the_smallest_of_the_positive_sites():
    assert (headline(0.9, 0.2).site, headline(0.9, 0.2).p_adjusted) == (HEADS, 0.2)
    assert headline(1.0, 1.0).site == MLP  # the higher score of equal p-values


def test_a_site_above_chance_is_not_confirmed_before_it_is_removed():
    result = headline(0.01)
    assert (result.stands_out, result.site, result.removal, result.unconfirmed) == (False, MLP, None, (MLP,))
    assert result.text == (
        "The attribution of layer 2 (MLP) is above chance (adjusted p .01), but not yet confirmed by removal on "
        "held-out text."
    )
    both = headline(0.01, 0.02)
    assert (both.site, both.others, both.unconfirmed) == (MLP, (HEADS,), (MLP, HEADS))
    assert "of layers 2 (MLP) and 5 (attention) is above chance (adjusted p below .05 each), but not yet" in both.text


def test_a_site_stands_out_if_its_removal_agrees():
    result = headline(0.0004, removals=[Removed((MLP,), 0.1761, (0.1266, 0.2322))])
    assert (result.stands_out, result.site, result.unconfirmed) == (True, MLP, ())
    assert result.text == (
        "Layer 2 (MLP) stands out (adjusted p < .001): removing it raises the NLL of held-out toxic text more than "
        "that of neutral text (+.176 [+.127, +.232] nats per token)."
    )


def test_several_sites_can_stand_out():
    result = headline(0.01, 0.02, [Removed((HEADS,), 0.5), Removed((MLP,))])
    assert (result.stands_out, result.site, result.others) == (True, MLP, (HEADS,))
    assert result.text.startswith("Layers 2 (MLP) and 5 (attention) stand out (adjusted p below .05 each): ")
    assert "layer 2 (MLP): +.250 [+.125, +.500]" in result.text
    three = headline_of(
        "attribution", {Site(i): 9.0 - i for i in range(3)}, dict.fromkeys(map(Site, range(3)), 0.01), ()
    )
    assert "of layers 0 (MLP), 1 (MLP) and 2 (MLP) is" in three.text


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"effect_ci": (-0.01, 0.5)}, "removing it on held-out text does not confirm it (effect +.250 [−.010, +.500]"),
        ({"effect_ci": (0.0, 0.5)}, "does not confirm it"),
        ({"effect": -0.25, "effect_ci": (-0.5, -0.125)}, "does not confirm it (effect −.250"),
        ({"breaks_model": True, "neutral_rise": 3.5}, "breaks the model (NLL of neutral text +3.500 nats per token)."),
    ],
)
def test_a_removal_that_does_not_agree_is_named(changed, reason):
    result = headline(0.01, removals=[Removed((MLP,), **changed)])
    assert (result.stands_out, result.site) == (False, MLP)
    assert result.text.startswith("No single site stands out: layer 2 (MLP) has adjusted p .01, but ")
    assert reason in result.text
    # Another site above chance is confirmed, or still to be confirmed.
    assert headline(0.01, 0.02, [Removed((MLP,), **changed), Removed((HEADS,))]).site == HEADS
    assert headline(0.01, 0.02, [Removed((MLP,), **changed)]).unconfirmed == (HEADS,)


def test_removals_of_several_sites_or_of_units_confirm_nothing():
    assert headline(0.01, removals=[Removed((MLP, HEADS)), Removed((), units=((MLP, 3),))]).removal is None


def test_negative_scores_and_scores_without_p_values():
    negative = headline_of("attribution", {MLP: -1.0}, {MLP: 0.001}, [Removed((MLP,))])
    assert (negative.site, negative.part, negative.stands_out) == (None, None, False)
    assert negative.text == "No single site stands out: no site has a positive attribution."
    unknown = headline_of("editability", VALUES, {}, [Removed((MLP,))])
    assert (unknown.site, unknown.p_adjusted, unknown.stands_out, unknown.unconfirmed) == (MLP, None, False, ())
    assert "without p-values it can be chance" in unknown.text


@given(st.floats(0.001, 1), st.floats(-1, 1), st.floats(-1, 1), st.booleans())
def test_what_stands_out_is_significant_and_confirmed(p, effect, low, breaks):
    removal = Removed((MLP,), effect, (low, max(low, effect) + 1), breaks_model=breaks)
    assert headline(p, removals=[removal]).stands_out == (p < 0.05 and low > 0 and effect > 0 and not breaks)
    assert agrees(removal) == headline(0.01, removals=[removal]).stands_out


def test_the_fields_are_given_by_name():
    assert headline(0.01, 0.02, [Removed((MLP,)), Removed((HEADS,))]).to_dict() == {
        "score": "attribution",
        "site": "2.mlp",
        "part": "mlp",
        "p_adjusted": 0.01,
        "removal": {"effect": 0.25, "effect_ci": [0.125, 0.5], "neutral_rise": 0.1, "breaks_model": False},
        "stands_out": True,
        "others": ["5.attention"],
        "text": headline(0.01, 0.02, [Removed((MLP,)), Removed((HEADS,))]).text,
    }
    assert headline_of("attribution", {}, {}).to_dict()["site"] is None


def located(score, mlp, attention, p):
    """Make a localization of one MLP and one attention; `p` holds their adjusted p-values."""

    def scores(part, value, p):
        uncertainty = Uncertainty(*(np.array([p]) for _ in Uncertainty.names()))
        return PartScores(
            (Site(3, part),),
            {score: np.array([value])},
            {score: np.array([[value]])},
            np.ones((1, 1)),
            {score: uncertainty},
        )

    return Localization({"mlp": scores("mlp", mlp, p[0]), "attention": scores("attention", attention, p[1])}, {})


def test_a_localization_is_judged_over_all_parts_and_from_the_value_that_carries_no_information():
    loc = located("attribution", 0.1, 0.4, (0.3, 0.01))
    assert (loc.headline().site, loc.headline().score) == (Site(3, "attention"), "attribution")
    assert loc.headline(removal=[Removed((Site(3, "attention"),))]).stands_out
    auroc = located("auroc", 0.4, 0.45, (0.001, 0.001))
    assert auroc.headline("auroc").site is None
    with pytest.raises(ToxlocError, match="'attribution' was not computed; choose from auroc"):
        auroc.headline()


def test_the_first_choice_is_attribution(tiny):
    pairs = ContrastSet([f"You are {t}" for t in TEXTS[:2]], [f"You are {t}" for t in TEXTS[2:4]], paired=True)
    loc = localize(tiny, pairs, ("attribution", "counterfactual"), parts=("mlp", "attention"), draws=20)
    assert loc.headline().score == "attribution"
    assert loc.headline("counterfactual").score == "counterfactual attribution"
    assert repr(loc) == (
        "Localization(model 'random-gpt2', contrast 'custom'; 2 × mlp, 2 × attention; attribution, counterfactual): "
        + loc.headline().text
    )


def test_a_localization_without_both_scores_has_a_repr(tiny):
    loc = localize(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), ("activation",), draws=0)
    assert repr(loc).endswith("; 2 × mlp; activation)")
    loc = dataclasses.replace(loc, about={"model": "\x1b[31m\u202e"})
    assert "\x1b" not in repr(loc) and "\u202e" not in repr(loc)


@pytest.mark.parametrize(("name", "stands_out"), [("clean", False), ("layer3", True)])
def test_a_planted_layer_stands_out_and_a_clean_model_has_no_headline(name, stands_out):
    lm = planted_model(name)
    fit, held_out = load_contrast().split(0.8, seed=0)
    loc = localize(lm, fit.limited(240), ("counterfactual",), parts=("mlp", "attention"))
    result = confirm(KnockoutTest(lm, held_out.limited(30)), loc)
    assert result.stands_out == stands_out
    if stands_out:
        assert (result.site, result.others) == (Site(3), ())
        assert result.removal.effect == pytest.approx(0.176, abs=0.06) and result.removal.effect_ci[0] > 0
        assert not loc.headline().stands_out and "not yet confirmed" in repr(loc)
    else:
        assert result.text.startswith("No single site stands out (adjusted p ")
        assert result.removal is None
