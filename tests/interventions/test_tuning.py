import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import TEXTS
from toxloc import TRNE, Meow2X, NeutralText, ToxlocError
from toxloc.evaluation.cost.fluency import Unedited, measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.budget import Budget
from toxloc.interventions.tuning import largest_within, tune
from toxloc.texts.chat_text import ChatText


def searched(cost, budget, first, **options):
    """Search, and check what holds for every search; return the result and the strengths that were tried."""
    tried = []

    def called(strength):
        tried.append(strength)
        return cost(strength)

    tuned = largest_within(called, budget, first, **options)
    assert (tuned.cost, tuned.evaluations) == (cost(tuned.strength), len(tried))
    assert tuned.cost <= budget
    assert tuned.strength == max(strength for strength in tried if cost(strength) <= budget)
    assert all(0 < strength <= options.get("limit", math.inf) for strength in tried)
    assert len(set(tried)) == len(tried)
    return tuned, tried


ORDERS = st.floats(-2, 2).map(lambda x: 10**x)  # a first strength is right within two orders of magnitude


@given(scale=st.floats(1e-3, 1e3), power=st.floats(0.5, 4), wrong=ORDERS, budget=st.floats(1e-4, 0.2))
def test_any_power_law_is_spent_to_95_percent_within_five_evaluations(scale, power, wrong, budget):
    right = (budget / scale) ** (1 / power)
    tuned, tried = searched(lambda s: scale * s**power, budget, right * wrong)
    assert tuned.cost >= 0.95 * budget
    assert len(tried) <= 5


@given(linear=st.floats(-8, 1), wrong=st.floats(-1, 1).map(lambda x: 10**x))
def test_a_linear_and_a_quadratic_term_of_either_sign_are_spent_to_95_percent_within_five_evaluations(linear, wrong):
    tuned, tried = searched(lambda s: 0.01 * (linear * s + (1 - linear) * s**2), 0.01, wrong)
    assert tuned.cost >= 0.0095
    assert len(tried) <= 5


def test_a_quadratic_cost_is_predicted_from_the_first_evaluation():
    tuned, tried = searched(lambda s: 3 * s**2, 0.01, first=0.02)
    assert tried == [0.02, pytest.approx(math.sqrt(0.975 * 0.01 / 3))]
    assert tuned.cost == pytest.approx(0.00975)


def test_the_last_evaluation_aims_a_little_lower():
    _, tried = searched(lambda s: 3 * s**2, 0.01, first=0.1, evaluations=2)
    assert tried == [0.1, pytest.approx(math.sqrt(0.965 * 0.01 / 3))]


@pytest.mark.parametrize(("first", "second"), [(600, 965), (400, 700), (3000, 700)])
def test_the_last_number_of_units_is_careful_if_little_is_spent(first, second):
    _, tried = searched(lambda n: n / 1e5, 0.01, first=first, evaluations=2, whole=True)
    assert tried == [first, pytest.approx(second, abs=1)]


def test_a_cost_with_a_linear_and_a_quadratic_term_is_predicted_from_two_evaluations_where_it_is_negative():
    tuned, tried = searched(lambda s: s**2 - 0.1 * s, 0.01, first=0.03)
    assert tried[:2] == [0.03, 0.12]
    assert len(tried) == 3
    assert tuned.cost == pytest.approx(0.00975)


def test_a_cubic_cost_is_predicted_from_three_evaluations_where_it_is_negative():
    tuned, tried = searched(lambda s: 0.01 * s * (s - 1) * (s + 2), 0.01, first=0.3)
    assert len(tried) == 4
    assert tuned.cost == pytest.approx(0.00975, rel=1e-4)


@given(
    costs=st.lists(st.floats(-0.5, 2), min_size=1, max_size=30),
    width=st.floats(0.01, 10),
    first=st.floats(0.01, 100),
    limit=st.floats(0.01, 100),
)
def test_any_cost_at_all_stays_within_the_budget_after_five_evaluations_or_at_the_first_success(
    costs, width, first, limit
):
    def cost(s):
        return costs[min(int(s / width), len(costs) - 1)]

    try:
        tuned, tried = searched(cost, 1.0, first, limit=limit)
    except ToxlocError:
        assert costs[0] > 1 or width < limit
        return
    assert len(tried) <= 5 or tried[-1] == tuned.strength
    assert len(tried) <= 5 or all(cost(strength) > 1 for strength in tried[:-1])
    for nth, strength in enumerate(tried):
        low = max((s for s in tried[:nth] if cost(s) <= 1), default=0)
        high = min((s for s in tried[:nth] if s > low), default=math.inf)
        assert low < strength < high
        if low and math.isfinite(high):  # a strength next to one of them would say nothing new
            assert low + 0.0049 * (high - low) < strength < high - 0.0049 * (high - low)


def test_below_an_infinite_cost_the_geometric_mean_is_tried():
    _, tried = searched(lambda s: math.inf if s > 1 else 0.001 * s**2, 0.01, first=1.0)
    assert tried[:2] == [1.0, pytest.approx(math.sqrt(9.75))]
    assert tried[2] == pytest.approx(math.sqrt(tried[1]))


def test_below_an_infinite_cost_a_finite_one_is_of_no_use():
    _, tried = searched(lambda s: 2.0 if s >= 3 else math.inf if s > 0.55 else s, 1.0, first=3.0)
    assert tried[1:3] == [pytest.approx(3 * math.sqrt(0.975 / 2)), pytest.approx(tried[1] / 4)]


def test_a_model_that_explodes_is_approached_from_below():
    tuned, tried = searched(lambda s: math.inf if s > 0.003 else s, 0.01, first=1.0)
    assert tuned.strength > 0.0015
    assert len(tried) == 5


def test_more_evaluations_are_used_only_until_a_strength_is_within_the_budget():
    _, tried = searched(lambda s: math.inf if s > 1e-8 else 0.0, 0.01, first=1.0)
    assert len(tried) == 7
    assert [strength <= 1e-8 for strength in tried] == [False] * 6 + [True]


def test_the_limit_is_kept():
    assert searched(lambda s: 1e-6 * s, 0.01, first=3, limit=10)[1] == [3, 10]
    assert searched(lambda s: 1e-6 * s, 0.01, first=30, limit=10)[1] == [10]


@example(costs=[2.2e-311, 0.0, 1.0], share=0.5, first=0.0)  # the ratio of the costs is infinite
@given(costs=st.lists(st.floats(0, 1), min_size=1, max_size=12), share=st.floats(0.05, 1), first=st.floats(0, 12))
def test_numbers_of_units_are_whole_and_with_enough_evaluations_the_largest_is_found(costs, share, first):
    total = np.cumsum(costs)
    budget = share * float(total[-1]) + 1e-9

    def cost(count):
        assert count == int(count)
        return float(total[int(count) - 1])

    if cost(1) > budget:
        with pytest.raises(ToxlocError, match="No strength down to 1 is within the budget"):
            searched(cost, budget, first, limit=len(costs), whole=True)
        return
    tuned, _ = searched(cost, budget, first, limit=len(costs), whole=True, evaluations=12)
    assert cost(tuned.strength) >= 0.95 * budget or tuned.strength == (total <= budget).sum()
    assert len(searched(cost, budget, first, limit=len(costs), whole=True)[1]) <= 5


@given(seed=st.integers(0, 100), n_units=st.integers(200, 2000), share=st.floats(0.1, 0.9))
def test_of_many_units_of_similar_cost_the_right_number_is_found_within_five_evaluations(seed, n_units, share):
    total = np.random.default_rng(seed).uniform(0.5, 1.5, n_units).cumsum()
    budget = share * float(total[-1])
    tuned, tried = searched(
        lambda count: float(total[int(count) - 1]), budget, n_units / 100, limit=n_units, whole=True
    )
    assert tuned.cost >= 0.95 * budget - 1.5  # the next unit costs at most 1.5
    assert len(tried) <= 5


@given(at_zero=st.floats(-0.5, 0.9), power=st.floats(0.8, 3), wrong=st.floats(-1, 1).map(lambda x: 10**x))
def test_what_an_earlier_edit_spent_is_not_taken_for_the_cost_of_the_new_one(at_zero, power, wrong):
    def cost(s):
        return at_zero + (1 - at_zero) * s**power

    tuned, tried = searched(cost, 1.0, wrong, at_zero=at_zero)
    assert tuned.strength**power >= 0.95 - 1e-9
    assert len(tried) <= 5


def test_no_strength_is_within_the_budget():
    calls = []
    with pytest.raises(ToxlocError, match="No strength down to"):
        largest_within(lambda s: calls.append(s) or 1.0, 0.01, first=1.0)
    assert len(calls) == 12
    assert calls == sorted(calls, reverse=True)


@pytest.mark.parametrize("budget", [Budget(kl=0.004), Budget(perplexity=0.02, kl=0.004), Budget(perplexity=0.002)])
def test_fits_keep_the_budget_by_an_independent_measure(lm, pairs, neutral, budget):
    edit = TRNE.fit(lm, pairs, budget=budget, neutral=neutral)
    with edit.applied(lm):
        cost = measure_fluency(lm, neutral.tune)
    assert 0.95 - 1e-3 <= budget.share(cost) <= 1 + 1e-3
    assert edit.record["spent"] == pytest.approx(budget.share(cost), abs=1e-3)
    assert edit.record["tuned_perplexity_ratio"] == pytest.approx(cost.perplexity_ratio, rel=1e-5)
    assert edit.record["budget"] == budget.to_dict()
    assert (edit.record["tuned_kl"] is None) == (budget.kl is None)
    assert edit.record["evaluations"] <= 5


@pytest.mark.parametrize("known", [False, True])
def test_tune_notes_what_it_chose_and_what_that_costs(tiny, known):
    neutral = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2], "some text")
    unedited = [Unedited(tiny, neutral.tune)] if known else ()
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


def test_the_budget_is_kept_in_plain_text_and_in_conversations(tiny):
    """The strength is that of the form in which the edit costs more."""
    plain, as_chat = TEXTS[3:4], [ChatText(TEXTS[4], [(5, len(TEXTS[4]))])]
    budget = Budget(kl=0.01)

    def tuned(texts):
        return tune(
            tiny,
            lambda s: Meow2X(layers=[0], scale=1 - s),
            budget,
            NeutralText(TEXTS[:1], texts, TEXTS[1:2]),
            0.1,
            limit=1.0,
        )

    alone = {form: tuned(texts).record["strength"] for form, texts in (("plain", plain), ("chat", as_chat))}
    both = tuned([*plain, *as_chat])
    assert alone["plain"] != pytest.approx(alone["chat"], rel=0.02)
    assert both.record["strength"] == pytest.approx(min(alone.values()), rel=0.02)
    with both.applied(tiny):
        costs = [measure_fluency(tiny, texts).kl for texts in (plain, as_chat)]
    assert max(costs) == pytest.approx(both.record["tuned_kl"], rel=1e-3) and max(costs) <= 0.01
