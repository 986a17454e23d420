import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TEXTS
from toxloc import TRNE, Meow2X, NeutralText, ToxlocError
from toxloc.evaluation.cost.fluency import Unedited, measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.budget import Budget
from toxloc.interventions.tuning import largest_within, tune


@given(scale=st.floats(1e-3, 1e3), power=st.floats(0.8, 3.5), first=st.floats(1e-3, 1e3), budget=st.floats(1e-4, 0.2))
def test_any_power_law_is_spent_to_nine_tenths_within_twelve_evaluations(scale, power, first, budget):
    calls = []

    def cost(s):
        calls.append(s)
        return scale * s**power

    # As in a fit, the first strength is right within a few orders of magnitude.
    start = (budget / scale) ** (1 / power) * min(max(first, 1e-2), 1e2)
    tuned = largest_within(cost, budget, start)
    assert 0.9 * budget <= tuned.cost <= budget
    assert tuned.cost == pytest.approx(cost(tuned.strength))
    assert len(calls) - 1 <= 12


def test_a_model_that_explodes_is_approached_from_below():
    tuned = largest_within(lambda s: math.inf if s > 0.003 else s, 0.01, first=1.0)
    assert 0.002 < tuned.strength <= 0.003


def test_below_an_infinite_cost_the_midpoint_is_tried():
    tried = []

    def cost(strength):
        tried.append(strength)
        return math.inf if strength > 1 else 0.001 * strength**2

    largest_within(cost, 0.01, first=1.0)
    assert tried[:2] == [1.0, pytest.approx(math.sqrt(9.8))]  # 98% of the budget under a quadratic cost
    assert tried[2] == pytest.approx((1 + math.sqrt(9.8)) / 2)


def test_between_a_negative_cost_and_a_cost_over_the_budget_the_costs_are_interpolated_linearly():
    tried = []

    def cost(strength):
        tried.append(strength)
        return {1.0: -0.005, 2.0: 0.02}.get(strength, 0.0098)

    largest_within(cost, 0.01, first=1.0)
    assert tried == [1.0, 2.0, pytest.approx(1 + (0.0098 + 0.005) / (0.02 + 0.005))]


def test_a_cost_that_first_falls_is_followed_until_it_rises():
    tuned = largest_within(lambda s: s * s - 0.1 * s, 0.01, first=0.01)
    assert tuned.cost <= 0.01
    assert tuned.strength > 0.15


def test_a_cost_that_falls_below_zero_and_then_rises_steeply_needs_few_evaluations():
    calls = []

    def cost(s):
        calls.append(s)
        return 0.01 * s**3 * (s - 1.9) / 0.8

    tuned = largest_within(cost, 0.01, first=1.0)
    assert 0.0095 <= tuned.cost <= 0.01
    assert len(calls) <= 9


def test_the_limit_is_kept():
    assert largest_within(lambda s: 1e-6 * s, 0.01, first=3, limit=10).strength == 10


def test_no_strength_is_within_the_budget():
    with pytest.raises(ToxlocError, match="No strength down to"):
        largest_within(lambda s: 1.0, 0.01, first=1.0)


@pytest.mark.parametrize("budget", [Budget(kl=0.004), Budget(perplexity=0.02, kl=0.004), Budget(perplexity=0.002)])
def test_fits_keep_the_budget_by_an_independent_measure(lm, pairs, neutral, budget):
    edit = TRNE.fit(lm, pairs, budget=budget, neutral=neutral)
    with edit.applied(lm):
        cost = measure_fluency(lm, neutral.tune)
    assert 0.9 <= budget.share(cost) <= 1 + 1e-3
    assert edit.record["tuned_perplexity_ratio"] == pytest.approx(cost.perplexity_ratio, rel=1e-5)
    assert edit.record["budget"] == budget.to_dict()
    assert (edit.record["tuned_kl"] is None) == (budget.kl is None)
    assert edit.record["evaluations"] <= 12


@pytest.mark.parametrize("known", [False, True])
def test_tune_notes_what_it_chose_and_what_that_costs(tiny, known):
    neutral = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2], "some text")
    unedited = Unedited(tiny, neutral.tune) if known else None
    made = tune(
        tiny, lambda s: Meow2X(layers=[0], scale=1 - s), Budget(kl=0.01), neutral, 0.1, limit=1.0, unedited=unedited
    )
    base = mean_nll(tiny, neutral.tune)
    with made.applied(tiny):
        ratio = np.exp(mean_nll(tiny, neutral.tune) - base)
        kl = measure_fluency(tiny, neutral.tune).kl
    assert made.record["strength"] == pytest.approx(1 - made.scale)
    assert made.record["tuned_perplexity_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert made.record["tuned_kl"] == pytest.approx(kl, rel=1e-4)
    assert 0.0095 <= kl <= 0.01
    assert made.record["texts"] == {"neutral": "some text"}
    assert made.fitted_on == {"name": "random-gpt2", "fingerprint": tiny.fingerprint}
    assert tiny.interventions == []
