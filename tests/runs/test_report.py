import json
import re

import pytest

from tests.conftest import asks_for_nothing_else


@pytest.fixture(scope="module")
def html(small_run):
    return small_run.report.read_text(encoding="utf-8")


def test_it_is_one_file_that_asks_for_nothing_else(html):
    assert asks_for_nothing_else(html)
    assert "Plotly.newPlot" in html


def test_figures_follow_a_dark_page(html):
    assert "paint(dark.matches)" in html


def test_texts_are_there_and_every_one_is_masked(html, small_run):
    rows = [json.loads(line) for line in (small_run.path / "completions.jsonl").read_text().splitlines()]
    masks = re.findall(r'<button type="button" class="mask"[^>]*>(.*?)</button>', html, flags=re.S)
    assert len(masks) > 60
    outside = re.sub(r'<button type="button" class="mask".*?</button>', "", html, flags=re.S)
    long_texts = {row["completion"].strip() for row in rows if len(row["completion"]) > 30}
    assert not [text for text in long_texts if text in outside]
    assert not [row["prompt"] for row in rows if row["prompt"] in outside]


def test_ten_pairs_drawn_at_random_stand_before_those_that_changed_most(html, small_run):
    at_random, changed = (part.count('<td class="text">') for part in
                          re.findall(r'<table class="completions">(.*?)</table>', html, flags=re.S))
    together = {}
    for line in (small_run.path / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        together.setdefault((row["kind"], row["prompt"], row["sample"]), []).append(row["toxic"]["any"])
    n_changed = sum(len(set(verdicts)) > 1 for verdicts in together.values())
    n_texts = 1 + len(small_run.results["runs"])
    assert at_random == 10 * n_texts
    assert changed == n_changed * n_texts > 0
    assert html.index("10 drawn at random") < html.index(f"{n_changed} whose verdicts changed")


def test_the_wording_stands_beside_the_baselines(html, small_run):
    for run in small_run.results["runs"]:
        assert f'{run["wording"]["distinct_2"]:.3f}' in html


def test_what_each_judge_misses_is_there(html, small_run):
    missed = small_run.results["runs"][0]["agreement"]["missed"]
    assert list(missed) == ["toxloc-guard", "profanity-check"]
    for one in missed.values():
        assert f"{one['value']:.1%} <small>" in html
    assert re.search(r"The \d+ completions on which they disagree most", html)


def test_over_suppression_is_there_for_every_method(html, small_run):
    baseline, *methods = small_run.results["runs"]
    assert baseline["over_suppression"] is None
    for run in methods:
        for kind in ("identity", "anger", "illness", "all"):
            shift = run["over_suppression"]["relevance"][kind]
            assert f"{shift['difference']:+.2f} <small>" in html
    assert "Does it still talk of what may be talked of?" in html


def test_the_advice_on_the_number_of_prompts_is_there(html, small_run):
    assert f"about {small_run.results['prompts']['needed_for_one_point']:,} prompts" in html


def test_categories_are_shown_where_there_are_some(small_run, tmp_path):
    from toxloc import Localization
    from toxloc.runs.report import write_report

    runs = [run | {"categories": {"some-judge": {"threat": run["toxicity"]["any"]}}}
            for run in small_run.results["runs"]]
    write_report(tmp_path / "r.html", small_run.results | {"runs": runs},
                 Localization.load(small_run.path / "localization"), None, [])
    html = (tmp_path / "r.html").read_text()
    assert "<td>some-judge</td><td>threat</td>" in html


def test_one_judge_and_no_texts(small_run, tmp_path):
    from toxloc import Localization
    from toxloc.runs.report import write_report

    runs = [run | {"agreement": None} for run in small_run.results["runs"]]
    write_report(tmp_path / "r.html", small_run.results | {"runs": runs},
                 Localization.load(small_run.path / "localization"), None, [])
    assert "nobody to agree with" in (tmp_path / "r.html").read_text()


def test_texts_are_escaped(small_run, tmp_path):
    from toxloc import Localization
    from toxloc.runs.report import write_report

    loc = Localization.load(small_run.path / "localization")
    evil = "<script>alert(1)</script>"
    rows = [{"method": m, "kind": None, "prompt": evil, "sample": 0, "completion": evil, "scores": {},
             "toxic": {"any": True, "both": True}} for m in ("baseline", "meow2x", "trne")]
    write_report(tmp_path / "r.html", small_run.results, loc, None, rows)
    assert evil not in (tmp_path / "r.html").read_text()


def test_it_answers_the_questions_with_the_numbers_of_the_results(html, small_run):
    for entry in small_run.results["runs"]:
        assert f"{entry['toxicity']['any']['rate']:.1%}" in html
    assert f"{small_run.results['runs'][2]['fluency']['perplexity_ratio'] - 1:+.2%}" in html
    assert small_run.results["command"] in html
    assert "Content warning" in html
