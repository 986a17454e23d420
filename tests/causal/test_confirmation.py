import numpy as np
import pytest

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, KnockoutTest, Localization, ToxlocError, confirm, knockout
from toxloc.localization.result import PartScores
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)


def located(p_values):
    """Make a localization of the two MLPs and the two attentions of a model, with these adjusted p-values by part."""
    by_part = {}
    for part, p in p_values.items():
        units = np.ones((2, {"mlp": 64, "attention": 2}[part]))
        uncertainty = {"attribution": Uncertainty(*(np.array(p) for _ in Uncertainty.names()))}
        values = {"attribution": np.array([0.5, 0.25])}
        by_part[part] = PartScores((Site(0, part), Site(1, part)), values, {"attribution": units}, units, uncertainty)
    return Localization(by_part, {"model": "random-gpt2"})


def test_only_sites_above_chance_are_removed(tiny):
    test, removed = KnockoutTest(tiny, PAIRS), []
    remove = test.remove
    test.remove = lambda parts: removed.append(parts) or remove(parts)
    result = confirm(test, located({"mlp": [0.5, 0.01], "attention": [0.02, 0.9]}))
    assert removed == [[Site(0, "attention")], [Site(1)]]
    by_site = {part: knockout(tiny, PAIRS, [part]) for part in (Site(0, "attention"), Site(1))}
    assert result.removal == by_site[result.site]
    agree = [site for site, k in by_site.items() if k.effect_ci[0] > 0]
    assert result.stands_out == bool(agree)
    assert not agree or [result.site, *result.others] == agree


def test_nothing_is_removed_if_no_site_is_above_chance(tiny):
    test = KnockoutTest(tiny, PAIRS)
    test.remove = None
    assert confirm(test, located({"mlp": [0.5, 0.06]})).text == "No single site stands out (adjusted p .06)."


def test_a_localization_of_another_model_is_an_error():
    with pytest.raises(ToxlocError, match="2 layers of 64 neurons; random-gpt2 has 3 layers"):
        confirm(KnockoutTest(random_model("gpt2", n_layer=3), PAIRS), located({"mlp": [0.01, 0.01]}))
