import pytest

from toxloc.plots.frontier import frontier


def entry(method, budget, rate, ratio):
    return {
        "method": method,
        "budget": budget,
        "fluency": {"perplexity_ratio": ratio, "kl": 0.01},
        "toxicity": {"any": {"rate": rate, "rate_ci": [rate - 0.02, rate + 0.05]}},
    }


def test_methods_are_lines_over_cost_and_the_baseline_is_a_horizontal_line():
    entries = [
        entry("baseline", None, 0.33, 1.0),
        entry("TRNE", 0.05, 0.02, 1.04),
        entry("TRNE", 0.01, 0.05, 1.009),
        entry("AurA as published", None, 0.2, 1.06),
    ]
    figure = frontier(entries)
    trne, aura = figure.data
    assert (list(trne.x), list(trne.y)) == (pytest.approx([0.009, 0.04]), [0.05, 0.02])
    assert list(trne.error_y.array) == pytest.approx([0.05, 0.05])
    assert list(trne.error_y.arrayminus) == pytest.approx([0.02, 0.02])
    assert "budget 1%" in trne.text[0] and "toxic 5.0%" in trne.text[0]
    assert "no budget" in aura.text[0]
    assert figure.layout.shapes[0].y0 == 0.33
    assert {trne.marker.symbol, aura.marker.symbol} == {"circle"}
    assert trne.line.color != aura.line.color


def test_more_methods_than_colours_have_other_symbols():
    figure = frontier([entry(f"method {i}", 0.01, 0.1, 1.01) for i in range(8)])
    assert len({(line.line.color, line.marker.symbol) for line in figure.data}) == 8


def test_an_entry_that_costs_far_more_is_named_in_the_subtitle():
    figure = frontier([entry("TRNE", 0.05, 0.02, 1.04), entry("AurA as published", None, 0.119, 1.62)])
    assert [line.name for line in figure.data] == ["TRNE"]
    assert "AurA as published, 11.9% at +62%" in figure.layout.title.text.replace("<br>", " ")
    only_far = frontier([entry("AurA as published", None, 0.2, 1.62)])
    assert [line.name for line in only_far.data] == ["AurA as published"]
