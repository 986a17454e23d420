import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import asks_for_nothing_else
from tests.hostile import HOSTILE
from toxloc import Site
from toxloc.support.control_characters import visible
from toxloc.sweeps.page import write_page


@dataclass
class HandmadeSummary:
    """A summary with figures written by hand."""

    plan: Any
    results: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    localizations: dict = field(default_factory=dict)
    depths: list = field(default_factory=list)

    def best(self):
        return [
            {
                "model": cell.model,
                "contrast": cell.contrast,
                "seed": cell.seed,
                "benchmark": cell.benchmark,
                "budget": "perplexity +5%",
                "before": 0.4,
                "best": cell.treatment,
                "after": 0.1,
                "change": result["change"]["any"],
                "perplexity_ratio": 1.025,
                "tied": [],
            }
            for cell, result in self.results[:1]
        ]

    def ranks(self):
        return (
            [
                {
                    "budget": "perplexity +5%",
                    "treatment": "trne, budget 0.05",
                    "n": 2,
                    "mean_rank": 1.5,
                    "mean_change": None,
                    "mean_perplexity_ratio": 1.01,
                }
            ]
            if self.results
            else []
        )

    def underestimates(self):
        return (
            [{"evaluator": "a", "models": "unedited", "runs": 3, "misses": 0.75, "misses_much": 0.25, "median": 0.5}]
            if self.results
            else []
        )


@dataclass(frozen=True)
class HandmadeLocalization:
    values: np.ndarray
    about: dict = field(default_factory=dict)
    scores: tuple = ("activation", "gradient_norm", "attribution")
    parts: tuple = ("mlp",)

    def sites(self, part):
        return [Site(i) for i in range(len(self.values))]

    def layer_scores(self, score, part):
        return self.values

    neuron_scores = layer_scores

    def part_uncertainty(self, score, part):
        return None

    def score_label(self, score):
        return SimpleNamespace(title=score.replace("_", " "), unit="", centre=0.0, neuron_title="")


def result(before, after):
    change = {"relative": after / before - 1, "ci": [-1.0, -0.5]} if before else None
    return {
        "baseline": {"toxicity": {"any": {"rate": before}}},
        "toxicity": {"any": {"rate": after}},
        "change": {"any": change},
        "fluency": {"perplexity_ratio": 1.025},
    }


def page(summary, tmp_path):
    """Write the page of a summary, and return its HTML."""
    write_page(tmp_path / "summary.html", summary)
    html = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert asks_for_nothing_else(html)
    return html


def text(html):
    """Return the text of a page without scripts and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.S)))


@pytest.fixture
def summary(plan):
    cells = plan.cells[:2]
    depth = SimpleNamespace(
        model=cells[0].model,
        seed=0,
        contrast="builtin",
        score="gradient_norm",
        peak=1,
        p=0.031,
        third="late",
        layers=np.array([0.0, 3.0]),
        shares={"early": 0.25, "middle": 0.0, "late": 0.75},
    )
    return HandmadeSummary(
        plan,
        [(cell, result(0.4, 0.1)) for cell in cells],
        [(plan.cells[2], "no <luck>")],
        {cells[0].group: HandmadeLocalization(np.array([0.0, 3.0]))},
        [depth],
    )


def test_the_page_has_the_numbers_of_the_summary(summary, tmp_path):
    seen = text(page(summary, tmp_path))
    assert f"2 of {len(summary.plan.cells)} cells" in seen
    assert "40.0%" in seen and "-75% [-100%, -50%]" in seen and "+2.5%" in seen
    assert "perplexity +5% trne, budget 0.05 2 1.5 – +1.0%" in seen
    assert "gradient norm 1 of 0 to 1 late 0.031 25.0% 0.0% 75.0%" in seen
    assert "a unedited 3 75.0% 25.0% 50.0%" in seen


def test_there_is_a_figure_for_costs_for_every_benchmark_and_for_every_score(summary, tmp_path):
    body = page(summary, tmp_path).split("<body>")[1]  # the head contains the code of Plotly
    benchmarks = {cell.benchmark for cell, _ in summary.results}
    assert body.count("Plotly.newPlot(") == 1 + len(benchmarks) + len(summary.plan.grid.scores)


def test_failed_cells_are_named_with_their_errors(summary, tmp_path):
    html = page(summary, tmp_path)
    assert "1 cell failed." in text(html)
    assert "no &lt;luck&gt;" in html
    summary.failures = []
    assert "failed" not in text(page(summary, tmp_path)).lower()


def test_a_cell_without_toxic_completions_before_has_no_change(summary, tmp_path):
    summary.results = [(cell, result(0.0, 0.0)) for cell, _ in summary.results]
    assert "10.0% – +2.5%" in text(page(summary, tmp_path))


def test_a_page_without_finished_cells_says_so(plan, summary, tmp_path):
    seen = text(page(HandmadeSummary(plan), tmp_path))
    assert "No cell is finished yet." in seen
    assert "mean rank" in text(page(summary, tmp_path)) and "mean rank" not in seen


class Tags(HTMLParser):
    """Collect the tags of a page, each with the names of its attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(name for name, _ in attributes)))


@pytest.mark.parametrize("loose", [HOSTILE, "</title></script><script src=https://example.org/x.js></script>"])
def test_names_and_errors_add_no_tag_and_no_control_character(summary, tmp_path, loose):
    pages = {}
    for name in ("plain", loose):
        plan = SimpleNamespace(name=name, cells=summary.plan.cells, grid=summary.plan.grid)
        cells = [
            replace(cell, model=name, benchmark=name, contrast=f"{name}{i}", seed=i, settings={"scale": name})
            for i, cell in enumerate(summary.plan.cells[:3])
        ]
        named = HandmadeSummary(
            plan,
            [(cell, result(0.4, 0.1)) for cell in cells[:2]],
            [(cells[2], name)],
            {cell.group: HandmadeLocalization(np.array([0.0, 3.0])) for cell in cells},
            [SimpleNamespace(**vars(depth) | {"model": name, "third": name}) for depth in summary.depths],
        )
        pages[name] = page(named, tmp_path)
    assert Tags(pages[loose]).tags == Tags(pages["plain"]).tags
    assert not [attribute for tag in Tags(pages[loose]).tags for attribute in tag if attribute in ("href", "src")]
    bodies = [html[html.index("<body>") :] for html in pages.values()]
    in_plain_figures, in_figures = (set(re.findall(r"\\u003c(?:\\u002f)?[a-z]+", body)) for body in bodies)
    assert in_figures == in_plain_figures
    assert visible(bodies[1], keep="\n\t") == bodies[1]
