import inspect
import math
import re

import pytest

from toxloc import ToxlocError
from toxloc.evaluation.cost.fluency import Fluency
from toxloc.interventions.budget import DEFAULT_BUDGET, Budget
from toxloc.interventions.registry import all_methods


@pytest.mark.parametrize("budget", [0, -0.1, 10, math.nan])
def test_budgets_out_of_range(budget):
    with pytest.raises(ToxlocError, match=rf"rise of perplexity .*, not {budget}\."):
        Budget.of(budget)
    with pytest.raises(ToxlocError, match=rf"KL in nats .*, not {budget}\."):
        Budget(kl=budget)


def test_a_budget_needs_a_limit():
    with pytest.raises(ToxlocError, match="needs perplexity= or kl="):
        Budget()


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (0.02, Budget(perplexity=0.02)),
        (1, Budget(perplexity=1)),
        ({"kl": 0.02}, Budget(kl=0.02)),
        ({"perplexity": 0.01, "kl": 0.02}, Budget(0.01, 0.02)),
        (Budget(kl=0.5), Budget(kl=0.5)),
    ],
)
def test_values_that_become_a_budget(given, budget):
    assert Budget.of(given) == budget


@pytest.mark.parametrize("given", [None, "much", True, {"k": 1}, [0.01]])
def test_other_values_are_refused_with_the_way_to_do_without_a_budget(given):
    with pytest.raises(ToxlocError, match=rf"budget={re.escape(repr(given))} .*give strength="):
        Budget.of(given)


def test_the_tighter_of_two_limits_counts_and_a_destroyed_model_is_over_any():
    both = Budget(perplexity=0.01, kl=0.02)
    assert both.share(Fluency(30, 1.005, 0.03, 1.0, 9)) == pytest.approx(1.5)
    assert both.share(Fluency(30, 1.02, 0.03, 1.0, 9)) == pytest.approx(2.0)
    assert Budget(kl=0.02).share(Fluency(30, 9.0, 0.01, 1.0, 9)) == pytest.approx(0.5)
    assert both.share(Fluency(math.inf, math.inf, 0.0, 1.0, 9)) == math.inf
    assert both.share(Fluency(30, 1.0, math.nan, 1.0, 9)) == math.inf


def test_scaling_multiplies_every_limit():
    assert Budget(perplexity=0.02, kl=0.5).scaled(0.5) == Budget(0.01, 0.25)
    assert Budget(kl=0.5).scaled(3) == Budget(kl=1.5)


@pytest.mark.parametrize("method", all_methods().values(), ids=str)
def test_one_percent_of_perplexity_is_the_default_of_every_method(method):
    assert Budget(perplexity=0.01) == DEFAULT_BUDGET
    assert method.Settings().budget == DEFAULT_BUDGET
    assert inspect.signature(method.fit).parameters["budget"].default == DEFAULT_BUDGET
    assert method.Settings().budget_in_words == "perplexity 0.01"
    with pytest.raises(ToxlocError, match="budget=None is not a budget"):
        method.Settings.of(budget=None)
