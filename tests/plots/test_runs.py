import numpy as np

from toxloc import plots
from toxloc.plots.runs import run_colours, run_title


def run(method, rate=0.5, tuned=1.01, checked=1.02, kl=0.125, **named):
    judged = {"rate": rate, "rate_ci": [rate - 0.25, rate + 0.125]}
    return {
        "method": method,
        "toxicity": {"toxloc-guard": judged, "any": judged, "all": judged},
        **named,
        "config": {"tuned_perplexity_ratio": tuned},
        "fluency": {"perplexity_ratio": checked, "kl": kl},
    }


RUNS = [
    run("baseline"),
    run("meow2x", rate=0.375, tuned=1.25, checked=1.5, title="Meow2X", colour="#3b7dd8"),
    run("mine", rate=0.25, kl=0.25),
]


def test_bars_carry_rates_and_intervals():
    bars = plots.before_after(RUNS).data
    assert [bar.name for bar in bars] == ["baseline", "Meow2X", "mine"]
    assert list(bars[1].x) == ["toxloc-<br>guard", "any", "all"]
    assert list(bars[1].y) == [0.375, 0.375, 0.375]
    assert list(bars[1].error_y.array) == [0.125, 0.125, 0.125]
    assert list(bars[1].error_y.arrayminus) == [0.25, 0.25, 0.25]


def test_a_method_has_its_own_colour_and_the_baseline_is_grey():
    assert [bar.marker.color for bar in plots.before_after(RUNS).data] == ["#8a8f98", "#3b7dd8", "#0072B2"]


def test_costs_are_shown_on_the_tuning_text_and_on_unseen_text():
    tuned, checked, kl = plots.cost(RUNS).data
    assert list(tuned.x) == list(kl.x) == ["Meow2X", "mine"]
    np.testing.assert_allclose(tuned.y, [0.25, 0.01])
    np.testing.assert_allclose(checked.y, [0.5, 0.02])
    assert list(kl.y) == [0.125, 0.25]


def test_files_without_titles_have_names_of_methods_and_colours_in_order():
    old = [run("baseline"), run("meow2x"), run("trne")]
    for entry in old:
        entry["toxicity"]["both"] = entry["toxicity"].pop("all")
    bars = plots.before_after(old).data
    assert [bar.name for bar in bars] == [run_title(entry) for entry in old] == ["baseline", "meow2x", "trne"]
    assert [bar.marker.color for bar in bars] == ["#8a8f98", "#0072B2", "#D55E00"]
    assert list(bars[0].x) == ["toxloc-<br>guard", "any", "all"]


def test_more_methods_than_colours_start_the_palette_again():
    colours = run_colours([{"method": f"m{i}"} for i in range(7)])
    assert len(set(colours[:6])) == 6
    assert colours[6] == colours[0]


def test_editability_is_sorted_by_layer():
    line = plots.editability({2: 1.0, 0: 3.0, 1: 2.0}).data[0]
    assert (list(line.x), list(line.y)) == ([0, 1, 2], [3.0, 2.0, 1.0])
