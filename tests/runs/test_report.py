import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.conftest import asks_for_nothing_else
from tests.hostile import HOSTILE
from toxloc import Localization
from toxloc.runs.report import write_report
from toxloc.support.control_characters import visible


@pytest.fixture(scope="module")
def html(small_run):
    return small_run.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def completions(small_run):
    return [json.loads(line) for line in (small_run.path / "completions.jsonl").read_text().splitlines()]


@pytest.fixture
def written(small_run, tmp_path):
    """Return a function that writes the report of the small run with given `runs` and completions."""

    def write(runs=None, rows=()):
        results = small_run.results | {"runs": small_run.results["runs"] if runs is None else runs}
        path = tmp_path / "r.html"
        write_report(path, results, Localization.load(small_run.path / "localization"), None, rows)
        return path.read_text(encoding="utf-8")

    return write


class Page(HTMLParser):
    """Collect the texts of masking buttons, all other texts, the values of attributes, and the cells of table rows."""

    def __init__(self, html):
        super().__init__()
        self.buttons, self.outside, self.rows, self.labels, self.tags = [], [], [], [], []
        self._masked = self._skipped = self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, *attributes))
        self._skipped = tag in ("script", "style")
        if tag == "button" and "mask" in (attributes.get("class") or "").split():
            self._masked = True
            self.buttons.append("")
        self.labels += [value for name, value in attributes.items() if name != "class" and value]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._skipped = False
        if tag == "button":
            self._masked = False
        elif tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, text):
        if self._skipped:
            return
        if self._in_cell:
            self.rows[-1][-1] += text
        if self._masked:
            self.buttons[-1] += text
        else:
            self.outside.append(text)


def shown_text(text):
    return visible(text.strip(), keep="\n\t")


def test_it_is_one_file_that_asks_for_nothing_else(html):
    assert asks_for_nothing_else(html)
    assert "Plotly.newPlot" in html


def test_figures_follow_a_dark_page(html):
    assert "paint(dark.matches)" in html


def test_every_text_is_inside_a_button_that_masks_it(html, completions, small_run):
    page = Page(html)
    outside = "\n".join([*page.outside, *page.labels])
    prompts, texts = ({shown_text(row[name]) for row in completions} for name in ("prompt", "completion"))
    shown = set(page.buttons)
    assert len(shown & prompts) >= 10 and len(shown & texts) >= 30
    tokens = {shown_text(" · ".join(neuron["tokens"])) for neuron in small_run.results["top_neurons"]}
    assert shown <= prompts | texts | tokens | {"(empty)"}
    assert not [text for text in prompts | texts | tokens if len(text) > 30 and text in outside]
    # The data of the figures, which are part of scripts, must not contain a prompt either.
    scripts = re.sub(r"<button.*?</button>", "", html, flags=re.S)
    assert not [prompt for prompt in prompts if json.dumps(prompt)[1:-1] in scripts]


BROWSER = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
PRESS = """<script>
const readable = e => getComputedStyle(e).color !== "rgba(0, 0, 0, 0)";
const all = [...document.querySelectorAll(".mask")], count = () => all.filter(readable).length;
const seen = [all.length, count()];
all[3].click();
seen.push(count(), readable(all[3]), all[3].getAttribute("aria-label") === all[3].textContent);
document.getElementById("show-all").click();
document.documentElement.dataset.seen = JSON.stringify([...seen, count()]);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_text_is_unreadable_until_its_button_is_pressed(html, tmp_path):
    (tmp_path / "page.html").write_text(html.replace("</body>", PRESS), encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/user",
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = re.search(r'<html[^>]*data-seen="\[(.*?)\]"', done.stdout)
    if seen is None:
        pytest.skip(f"the browser does not start: {done.stderr[-200:]}")
    n, at_first, pressed, *open_now, in_the_end = json.loads(f"[{seen[1]}]")
    assert (at_first, pressed, open_now) == (0, 1, [True, True])
    assert in_the_end == n == len(Page(html).buttons)


def test_ten_samples_drawn_at_random_come_before_those_with_changed_verdicts(html, completions, small_run):
    at_random, changed = (
        part.count('<td class="text">')
        for part in re.findall(r'<table class="completions">(.*?)</table>', html, flags=re.S)
    )
    together = {}
    for row in completions:
        together.setdefault((row["kind"], row["prompt"], row["sample"]), []).append(row["toxic"]["any"])
    n_changed = sum(len(set(verdicts)) > 1 for verdicts in together.values())
    n_texts = 1 + len(small_run.results["runs"])
    assert at_random == 10 * n_texts
    assert changed == n_changed * n_texts > 0
    assert re.findall(r"<h3>(\d+) ", html) == ["10", str(n_changed)]


def test_methods_have_their_titles_and_in_older_files_their_names(written, small_run):
    runs = [run | {"title": f"title of <{run['method']}>"} for run in small_run.results["runs"]]
    rows = [row[0] for row in Page(written(runs)).rows if row]
    assert "title of <trne>" in rows and "trne" not in rows
    runs = [{name: value for name, value in run.items() if name != "title"} for run in runs]
    rows = [row[0] for row in Page(written(runs)).rows if row]
    assert {"baseline", "meow2x", "trne"} <= set(rows)


def test_the_wording_of_every_method_is_in_a_table(html, small_run):
    rows = Page(html).rows
    for run in small_run.results["runs"]:
        wording = run["wording"]
        assert [
            run["title"],
            f"{wording['median_words']:g}",
            f"{wording['distinct_2']:.3f}",
            f"{wording['repetition']:.1%}",
            f"{wording['empty']:.1%}",
            f"{run['completion_perplexity']:.1f}",
        ] in rows


def test_the_page_says_how_much_each_judge_misses(html, small_run):
    missed = small_run.results["runs"][0]["agreement"]["missed"]
    assert list(missed) == ["toxloc-rtp", "toxloc-guard", "profanity-check"]
    for estimate in missed.values():
        assert f"{estimate['value']:.1%} <small>" in html


def disputed(name, toxic):
    return {
        "method": "baseline",
        "kind": None,
        "prompt": "p",
        "sample": 0,
        "completion": name,
        "toxic": toxic,
        "scores": {"a": 0.9, "b": {"much": 0.1, "little": 0.6, "none": 0.9}[name]},
    }


def test_disputed_completions_come_in_order(written):
    rows = [
        disputed("little", {"a": True, "b": False, "any": True, "all": False}),
        disputed("none", {"a": True, "b": True, "any": True, "all": True}),
        disputed("much", {"a": True, "b": False, "any": True, "all": False}),
    ]
    html = written(rows=rows)
    assert "The 2 completions" in html
    table = [row for row in Page(html).rows if row and row[0].startswith(("much", "little", "none"))]
    assert table == [["muchtoxic: a", "0.90", "0.10"], ["littletoxic: a", "0.90", "0.60"]]


def test_over_suppression_is_there_for_every_method(html, small_run):
    baseline, *methods = small_run.results["runs"]
    assert baseline["over_suppression"] is None
    for run in methods:
        for kind in ("identity", "anger", "illness", "all"):
            shift = run["over_suppression"]["relevance"][kind]
            assert f"{shift['difference']:+.2f} <small>" in html


def test_the_advice_on_the_number_of_prompts_is_there(html, small_run):
    assert f"about {small_run.results['prompts']['needed_for_one_point']:,} prompts" in html


def test_categories_are_shown_where_there_are_some(written, small_run):
    runs = [
        run | {"categories": {"some-judge": {"threat": run["toxicity"]["any"]}}} for run in small_run.results["runs"]
    ]
    assert ["some-judge", "threat", *(f"{run['toxicity']['any']['rate']:.1%}" for run in runs)] in Page(
        written(runs)
    ).rows


def rate(share, n_prompts, too_small=False):
    return {"rate": share, "rate_ci": [share / 2, 2 * share], "n_prompts": n_prompts, "too_small": too_small}


def test_rates_by_language_and_category_are_shown_where_there_are_some(html, written, small_run):
    runs = [
        run
        | {
            "by_language": {"de": {"any": rate(0.25 + 0.1 * i, 30)}, "ceb": {"any": rate(0.5, 4, too_small=True)}},
            "by_category": {"insult": {"some-judge": rate(0.125, 12)}},
        }
        for i, run in enumerate(small_run.results["runs"])
    ]
    rows = Page(written(runs)).rows
    assert ["German (de)", "30", "any", "25.0% [12.5%, 50.0%]", "35.0% [17.5%, 70.0%]", "45.0% [22.5%, 90.0%]"] in rows
    assert ["ceb", "4, too few", "any", *["50.0% [25.0%, 100.0%]"] * 3] in rows
    assert ["insult", "12", "some-judge", *["12.5% [6.2%, 25.0%]"] * 3] in rows
    assert "by the language" in written(runs) and "by the category" in written(runs)
    assert "by the language" not in html and "by the category" not in html


def test_warnings_about_languages_are_shown_once(html, written, small_run):
    assert all(run["language_notes"]["warnings"] == [] for run in small_run.results["runs"])
    assert "as detected" not in html
    sentences = ["a knows English only; 64% of the completions look German (de).", "a knows English only; 70%."]
    notes = [{"detected": {"de": 0.64, "und": 0.36}, "evaluators": {}, "warnings": [s]} for s in sentences]
    runs = small_run.results["runs"]
    page = written([run | {"language_notes": notes[i > 1]} for i, run in enumerate(runs)])
    assert [page.count(sentence) for sentence in sentences] == [1, 1]
    assert page.count("as detected: German (de) 64.0%, undecided 36.0%.") == 3
    older = [{name: value for name, value in run.items() if name != "language_notes"} for run in runs]
    assert "as detected" not in written(older)


def test_the_languages_of_the_evaluators_are_shown(small_run, tmp_path):
    known = {"a": {"threshold": 0.5, "languages": ["en", "de"]}, "b": {"threshold": 0.5, "languages": ["*"]}}
    results = small_run.results | {"evaluators": known | {"c": {"threshold": 0.5}}}
    write_report(tmp_path / "r.html", results, Localization.load(small_run.path / "localization"), None, ())
    rows = Page((tmp_path / "r.html").read_text(encoding="utf-8")).rows
    assert [row[3] for row in rows if len(row) == 6 and row[0] in known | {"c": 0}] == [
        "en, de",
        "practically all",
        "unknown",
    ]


def test_a_run_with_one_judge_and_without_knock_outs_and_texts(html, written, small_run):
    shorter = written([run | {"agreement": None} for run in small_run.results["runs"]])
    assert "only one evaluator" in shorter and "only one evaluator" not in html
    assert "Causal test" in html and "Causal test" not in shorter
    assert Page(shorter).buttons == [shown_text(" · ".join(n["tokens"])) for n in small_run.results["top_neurons"]]


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({"stands_out": True, "site": "3.mlp"}, "layer 3"),
        ({"stands_out": True, "site": "3.mlp", "others": ["5.attention"]}, "layer 3 and layer 5, attention"),
        ({"p_adjusted": 0.01, "removal": None}, "not confirmed"),
        ({"p_adjusted": 0.06, "removal": None}, "no single site"),
        ({"p_adjusted": None, "site": None}, "no single site"),
    ],
)
def test_the_first_box_names_sites_only_if_they_stand_out(small_run, tmp_path, changed, value):
    results = small_run.results | {"headline": small_run.results["headline"] | changed}
    write_report(tmp_path / "r.html", results, Localization.load(small_run.path / "localization"), None, ())
    assert f"<small>where toxicity is</small><b>{value}</b>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_run_without_counterfactual_attribution_says_why(small_run, tmp_path, html):
    loc = Localization.load(small_run.path / "localization")
    for part in loc.by_part.values():
        del part.layers["counterfactual"]
    results = json.loads(json.dumps(small_run.results))
    results["localization"]["without_counterfactual"] = "the texts of the contrast set are not paired"
    write_report(tmp_path / "r.html", results, loc, None, ())
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    sentence = "Counterfactual attribution is missing: the texts of the contrast set are not paired."
    assert sentence in page and "Counterfactual attribution is missing" not in html


def test_texts_are_escaped(written):
    evil = "<script>alert(1)</script>"
    rows = [
        {
            "method": m,
            "kind": None,
            "prompt": evil,
            "sample": 0,
            "completion": evil,
            "scores": {},
            "toxic": {"any": True, "all": True},
        }
        for m in ("baseline", "meow2x", "trne")
    ]
    html = written(rows=rows)
    assert evil not in html
    assert Page(html).buttons[-4:] == [evil] * 4


def test_it_begins_with_the_main_numbers_of_the_results(html, small_run):
    for entry in small_run.results["runs"]:
        assert f"{entry['toxicity']['any']['rate']:.1%}" in html
    assert f"{small_run.results['runs'][2]['fluency']['perplexity_ratio'] - 1:+.2%}" in html
    assert html.count(small_run.results["headline"]["text"]) == 2  # in the first box, and above the figures
    assert "<b>no single site</b>" in html
    assert small_run.results["command"] in html
    assert "Content warning" in html


def test_the_first_table_is_the_results(html, small_run):
    """Rates by any evaluator with their intervals, the change, the figures of RealToxicityPrompts, and the costs."""
    rows = Page(html).rows
    at = next(i for i, row in enumerate(rows) if row[:3] == ["method", "toxic by any", "change"])
    for row, run in zip(rows[at + 1 :], small_run.results["runs"], strict=False):
        judged, fluency = run["toxicity"]["any"], run["fluency"]
        low, high = judged["rate_ci"]
        assert row[:2] == [run["title"], f"{judged['rate']:.1%} [{low:.1%}, {high:.1%}]"]
        assert row[2].startswith(f"{run['change']['any']['relative']:+.0%} [" if "change" in run else "–")
        assert row[3].startswith(f"{judged['expected_max']:.2f} [")
        assert row[4].startswith(f"{judged['probability']:.1%} [")
        assert row[5] == f"{run['everyday_toxicity']['any']['rate']:.1%}"
        assert row[6].startswith(f"{fluency['perplexity']:.2f}")
        assert run["method"] == "baseline" or row[6].endswith(f"({fluency['perplexity_ratio'] - 1:+.2%})")
        assert row[7] == f"{fluency['kl']:.4f}"


@pytest.mark.parametrize("loose", [HOSTILE, "</title></script><script src=https://example.org/x.js></script>"])
def test_names_and_texts_add_no_tag_and_no_control_character(small_run, tmp_path, loose):
    pages = {}
    for name in ("plain", loose):
        results = json.loads(json.dumps(small_run.results))
        results |= {"model": name, "command": name, "evaluators": {name: {"threshold": name, "blind_to": name}}}
        results["settings"] |= {name: name, f"{name}s": [name]}
        for part in ("prompts", "neutral", "contrast"):
            results[part]["name"] = name
        results["top_neurons"] = [{"layer": 0, "neuron": 1, "attribution": 0.5, "tokens": [name]}]
        for run in results["runs"]:
            rate = run["toxicity"]["any"]
            run |= {"title": name + run["method"], "toxicity": run["toxicity"] | {name: rate}}
            run |= {"categories": {name: {name: rate}}, "agreement": agreement(name)}
            groups = {name: {name: rate | {"n_prompts": 1, "too_small": True}}}
            notes = {"detected": {name: 0.5}, "evaluators": {}, "warnings": [name]}
            run |= {"by_language": groups, "by_category": groups, "language_notes": notes}
        rows = [
            disputed("much", {name: True, "b": False, "any": True, "all": False})
            | {"prompt": name, "completion": name, "method": run["method"], "scores": {name: 0.5, "b": 0.25}}
            for run in results["runs"]
        ]
        loc = Localization.load(small_run.path / "localization")
        loc.about["model"] = name
        write_report(tmp_path / "r.html", results, loc, None, rows)
        pages[name] = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert Page(pages[loose]).tags == Page(pages["plain"]).tags
    assert shown_text(loose) in Page(pages[loose]).buttons
    assert asks_for_nothing_else(pages[loose].replace(visible(loose), ""))
    bodies = [page[page.index("<body>") :] for page in pages.values()]
    in_plain_figures, in_figures = (set(re.findall(r"\\u003c(?:\\u002f)?[a-z]+", body)) for body in bodies)
    assert in_figures == in_plain_figures
    assert visible(bodies[1], keep="\n\t") == bodies[1]


def agreement(name):
    estimate = {"value": 0.5, "ci": [0.25, 0.75]}
    return {"missed": {name: estimate}, "pairs": [{"evaluators": [name, "b"], "spearman": estimate, "kappa": estimate}]}
