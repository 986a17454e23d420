import numpy as np

from toxloc import plots


def run(method, rate=0.5, tuned=1.01, checked=1.02, kl=0.125):
    judged = {"rate": rate, "rate_ci": [rate - 0.25, rate + 0.125]}
    return {"method": method, "toxicity": {"any": judged, "toxloc-guard": judged},
            "config": {"tuned_perplexity_ratio": tuned}, "fluency": {"perplexity_ratio": checked, "kl": kl}}


RUNS = [run("baseline"), run("meow2x", rate=0.375, tuned=1.25, checked=1.5), run("mine", rate=0.25, kl=0.25)]


def test_bars_carry_rates_and_intervals():
    bars = plots.before_after(RUNS).data
    assert [bar.name for bar in bars] == ["baseline", "Meow2X", "mine"]
    assert list(bars[1].x) == ["any", "toxloc-<br>guard"]
    assert list(bars[1].y) == [0.375, 0.375]
    assert list(bars[1].error_y.array) == [0.125, 0.125]
    assert list(bars[1].error_y.arrayminus) == [0.25, 0.25]


def test_costs_are_shown_as_tuned_and_as_checked():
    tuned, checked, kl = plots.cost(RUNS).data
    np.testing.assert_allclose(tuned.y, [0.25, 0.01])
    np.testing.assert_allclose(checked.y, [0.5, 0.02])
    assert list(kl.y) == [0.125, 0.25]


def test_editability_goes_by_layer():
    line = plots.editability({2: 1.0, 0: 3.0, 1: 2.0}).data[0]
    assert (list(line.x), list(line.y)) == ([0, 1, 2], [3.0, 2.0, 1.0])
