import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc.evaluation.groups import rates_by_group
from toxloc.evaluation.judgement import Judgement
from toxloc.support.intervals import mean_interval

TOXIC = np.array([[1, 0], [0, 0], [1, 1], [0, 1], [0, 0]], dtype=bool)
JUDGE = {"judge": Judgement(TOXIC.astype(float), TOXIC), "never": Judgement(np.zeros((5, 2)), np.zeros((5, 2), bool))}
GROUPS = ["de", "en", "de", "en", "fr"]


def test_rates_by_hand():
    rates = rates_by_group(JUDGE, GROUPS)
    assert list(rates) == ["de", "en", "fr"]
    assert {group: of["judge"].rate for group, of in rates.items()} == {"de": 3 / 4, "en": 1 / 4, "fr": 0.0}
    assert {group: of["judge"].n_prompts for group, of in rates.items()} == {"de": 2, "en": 2, "fr": 1}
    assert [of["never"].rate for of in rates.values()] == [0, 0, 0]


def test_a_changed_group_changes_the_rates():
    """Prompt 1 has no toxic completion, and prompt 2 has only such completions."""
    swapped = rates_by_group(JUDGE, ["de", "de", "en", "en", "fr"])
    assert (swapped["de"]["judge"].rate, swapped["en"]["judge"].rate) == (1 / 4, 3 / 4)


def test_intervals_are_over_the_prompts_of_the_group():
    per_prompt = np.arange(20) / 20  # 20 prompts of 20 completions each, of which 0 to 19 are toxic
    toxic = np.arange(20) < np.arange(20)[:, None]
    toxic = np.concatenate([toxic, np.ones((5, 20), dtype=bool)])
    judge = {"judge": Judgement(toxic.astype(float), toxic)}
    intervals = {}
    for seed in (4, 5):
        index = np.random.default_rng(seed).integers(20, size=(2000, 20))
        intervals[seed] = tuple(np.quantile(per_prompt[index].mean(1), [0.025, 0.975]))
        rates = rates_by_group(judge, ["de"] * 20 + ["en"] * 5, seed)
        assert rates["de"]["judge"].rate_ci == pytest.approx(intervals[seed])
    assert intervals[4] != intervals[5]
    rates = rates_by_group(JUDGE, GROUPS)
    assert rates["fr"]["judge"].rate_ci == mean_interval(np.zeros(1))


@pytest.mark.parametrize(("count", "too_small"), [(1, True), (9, True), (10, False)])
def test_groups_of_fewer_than_ten_prompts_are_marked(count, too_small):
    toxic = np.zeros((count, 1), dtype=bool)
    rate = rates_by_group({"judge": Judgement(toxic.astype(float), toxic)}, ["de"] * count)["de"]["judge"]
    assert rate.too_small is too_small
    assert rate.to_dict() == {"rate": 0.0, "rate_ci": list(rate.rate_ci), "n_prompts": count, "too_small": too_small}


def test_prompts_without_groups_have_no_rates():
    assert rates_by_group(JUDGE, None) is None


@given(
    st.integers(1, 3).flatmap(
        lambda samples: st.lists(
            st.tuples(st.sampled_from("abc"), st.lists(st.booleans(), min_size=samples, max_size=samples)),
            min_size=1,
            max_size=12,
        )
    )
)
def test_the_weighted_mean_of_the_groups_is_the_rate_of_all_prompts(prompts):
    toxic = np.array([verdicts for _, verdicts in prompts])
    rates = rates_by_group({"judge": Judgement(toxic.astype(float), toxic)}, [group for group, _ in prompts])
    assert sum(of["judge"].n_prompts for of in rates.values()) == len(prompts)
    weighted = sum(of["judge"].rate * of["judge"].n_prompts for of in rates.values()) / len(prompts)
    assert weighted == pytest.approx(toxic.mean())
    assert all(of["judge"].rate_ci[0] <= of["judge"].rate <= of["judge"].rate_ci[1] for of in rates.values())
