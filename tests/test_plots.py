import numpy as np
import pytest

from toxloc import Localization, plots


@pytest.fixture
def loc():
    rng = np.random.default_rng(0)
    return Localization({"activation": np.array([1.0, 4.0]), "attribution": np.array([-3.0, 1.5])},
                        {"activation": rng.normal(size=(2, 600)), "attribution": rng.normal(size=(2, 600))},
                        {"model": "m"})


def test_columns_of_the_heatmap_are_shares_of_their_largest_and_show_the_scores(loc):
    heat = loc.heatmap().data[0]
    np.testing.assert_allclose(heat.z, [[0.25, -1.0], [1.0, 0.5]])
    assert [list(row) for row in heat.text] == [["1", "-3"], ["4", "1.5"]]
    assert list(heat.y) == ["layer 0", "layer 1"]


def test_neurons_are_sorted_and_the_extremes_are_kept(loc):
    z = np.array(plots.neuron_map(loc, bins=50).data[0].z)
    assert z.shape == (2, 50)
    assert (np.diff(z, axis=1) <= 0).all()
    np.testing.assert_allclose(z[:, 0], loc.neuron_scores("attribution").max(1))
    np.testing.assert_allclose(z[:, -1], loc.neuron_scores("attribution").min(1))


def test_bars_carry_rates_and_intervals(small_run):
    figure = plots.before_after(small_run.results["runs"])
    assert [bar.name for bar in figure.data] == ["baseline", "Meow2X", "TRNE"]
    figures = small_run.results["runs"][1]["toxicity"]
    bar = figure.data[1]
    names = [name.replace("<br>", "") for name in bar.x]
    np.testing.assert_allclose(bar.y, [figures[name]["rate"] for name in names])
    np.testing.assert_allclose(bar.y + bar.error_y.array, [figures[name]["rate_ci"][1] for name in names])


def test_costs_are_shown_as_tuned_and_as_checked(small_run):
    tuned, checked, kl = plots.cost(small_run.results["runs"]).data
    runs = small_run.results["runs"][1:]
    np.testing.assert_allclose(tuned.y, [run["config"]["tuned_perplexity_ratio"] - 1 for run in runs])
    np.testing.assert_allclose(checked.y, [run["fluency"]["perplexity_ratio"] - 1 for run in runs])
    np.testing.assert_allclose(kl.y, [run["fluency"]["kl"] for run in runs])
