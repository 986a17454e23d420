import pytest

from toxloc import TRNE, Budget, ToxlocError
from toxloc.interventions.registry import METHODS
from toxloc.interventions.settings import accepted_settings, check_settings, parameters


@pytest.mark.parametrize("method", METHODS)
def test_what_a_sweep_gives_itself_is_no_setting(method):
    assert {"lm", "pairs", "neutral"} <= set(parameters(method))
    assert "budget" in accepted_settings(method)
    assert not {"lm", "pairs", "neutral", "seed", "statistics", "aurocs", "maps"} & set(accepted_settings(method))


@pytest.mark.parametrize(("method", "settings", "said"), [
    ("trne", {"budgett": 1}, "trne has no setting 'budgett'; it takes metric, budget"),
    ("trne", {"statistics": 1}, "no setting 'statistics'"),
    ("trne", {"budget": "much"}, "trne cannot take budget='much'"),
    ("trne", {"budget": {"k": 1}}, "a budget has the limits perplexity and kl"),
    ("trne", {"budget": -1}, "such as 0.01, not -1"),
    ("trne", {"rounds": 2, "norm": 0.1}, "rounds=2"),
    ("trne", {"metric": "frobenius", "shrink": True}, "the frobenius form has no curvature"),
    ("meow2x", {"parts": "heads"}, "Unknown parts 'heads'"),
    ("damp", {"k": 1.5}, "damp cannot take k=1.5"),
])
def test_what_cannot_be_is_named_without_a_model(method, settings, said):
    with pytest.raises(ToxlocError) as error:
        check_settings(method, settings)
    assert said in str(error.value)


def test_a_mapping_of_limits_becomes_a_budget():
    assert check_settings("trne", {"budget": {"kl": 0.02}, "layers": [1, 2]}) == {"budget": Budget(kl=0.02),
                                                                              "layers": [1, 2]}


@pytest.mark.parametrize(("settings", "shares"), [({}, True), ({"rounds": 2}, True), ({"fisher": "sampled"}, False),
                                                  ({"shrink": True}, False), ({"ridge": "auto"}, False)])
def test_when_trne_works_on_statistics_gathered_before(settings, shares):
    assert TRNE.shares_statistics(**settings) == shares
