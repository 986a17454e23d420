import json
import re

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import (
    causal,
    coverage,
    default_run,
    evaluators,
    generation,
    grid,
    methods,
    planted,
    speed,
    tables,
    trne,
)
from benchmarks.recipes import guard_rtp
from toxloc import ToxlocError

PAGES = [page for page in tables.pages() if "<!-- table" in page.read_text(encoding="utf-8")]


def cells(table):
    """Return the rows of a table as lists of cells, without the rule below the head."""
    head, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert len({len(row) for row in (head, rule, *rows)}) == 1
    return [head, *rows]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_match_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run `python -m benchmarks.tables`"


def test_every_table_is_in_a_page_between_two_marks():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"<!-- table: ([\w-]+) -->", text)
    assert set(named) == set(tables.TABLES)
    assert text.count("<!-- end of table -->") == len(named) == len(tables.MARKED.findall(text))


def test_pages_are_compared_and_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- table: small -->\nstale \\1\n<!-- end of table -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setattr(tables, "TABLES", {"small": lambda: r"| \1 |"})
    app = typer.Typer()
    app.command()(tables.main)
    checked = CliRunner().invoke(app, ["--check"])
    assert (checked.exit_code, checked.output) == (1, "page.md: not up to date\n")
    assert "stale" in page.read_text()
    assert CliRunner().invoke(app, []).output == "page.md: written\n"
    assert page.read_text() == "before\n\n<!-- table: small -->\n\n| \\1 |\n\n<!-- end of table -->\nafter\n"
    assert CliRunner().invoke(app, ["--check"]).exit_code == 0
    with pytest.raises(ToxlocError, match=r"'smal'.*small"):
        tables.filled("<!-- table: smal -->\n<!-- end of table -->")


def test_planted_and_its_controls():
    kinds = {"mlp": 8, "neurons": 0, "attention": 0, "head": 2, "two": 0}
    row = {
        "score": "attribution",
        "plants": kinds,
        "first": kinds | {"mlp": 7},
        "significant": kinds | {"mlp": 6, "head": 0},
        "mean_margin": -0.5,
        "neuron_precision": 0.125,
        "neuron_precision_in_site": None,
        "head_precision": 1.0,
    }
    control = {"model": "clean", "contrast": "builtin", "score": "attribution", "rank": None, "p_true": None}
    plant = {"model": "layer1", "score": "attribution", "p_adjusted": 0.1, "top": "1.mlp"}
    result = {
        "summary": [row, row | {"first": kinds}],
        "findings": [
            control | {"top": "3.attention", "p_adjusted": 0.4},
            plant | {"contrast": "builtin", "rank": 1, "p_true": 0.1},
            plant | {"contrast": "sampled", "rank": 2, "p_true": 0.0004},
            control | {"contrast": "sampled", "top": "0.mlp", "p_adjusted": None},
        ],
    }
    head, line = cells(planted.markdown(result).replace("\u00a0", " "))
    assert head[1:3] == ["MLPs: first, at p < .05, of 8", "heads: first, at p < .05, of 2"]
    assert line == [
        "`attribution`",
        "7, 6 · 8, 6",
        "2, 0 · 2, 0",
        "-0.50 · -0.50",
        "0.12 · 0.12",
        "– · –",
        "1.00 · 1.00",
    ]
    assert cells(planted.controls_markdown(result)) == [
        ["score", "clean, built-in", "clean, sampled"],
        ["`attribution`", "layer 3, attention, p 0.400", "layer 0"],
    ]
    assert cells(planted.plants_markdown(result, ["attribution"]).replace("\u00a0", " "))[1] == [
        "layer1",
        "1 · 2",
        ".100 · <.001",
    ]


def test_causal():
    def correlation(parts, value):
        return {"score": "auroc", "parts": parts, "spearman": value, "ci": [value - 0.1, value + 0.1]}

    def knocked(effect):
        return {"effect": effect, "effect_ci": [effect - 1, effect + 1], "perplexity_ratio": 1 + effect}

    result = {
        "proof": {
            "layers": [0] * 8,
            "neurons": [0] * 200,
            "correlations": [correlation("layers", 0.5), correlation("neurons", -0.25)],
        },
        "curves": [
            {"score": "auroc", "counts": [4], "ordered": [knocked(0.5)], "controls": [[knocked(0.0), knocked(0.25)]]}
        ],
    }
    assert cells(causal.markdown({"a": result, "b": result})) == [
        ["score", "a, 8 layers", "a, 200 neurons", "b, 8 layers", "b, 200 neurons"],
        ["`auroc`", *["+0.50 [+0.40, +0.60]", "-0.25 [-0.35, -0.15]"] * 2],
    ]
    assert cells(causal.curves_markdown(result).replace("\u00a0", " "))[1] == [
        "`auroc`",
        "4",
        "+0.500 [-0.500, +1.500]",
        "1.50",
        "+0.000 · +0.250",
        "1.00 · 1.25",
    ]


def judged(method, budget, rate, rise):
    estimate = {"value": 0.5, "ci": [0.25, 0.75]}
    return {
        "method": method,
        "budget": budget,
        "fluency": {"perplexity_ratio": 1 + rise, "kl": 0.03},
        "toxicity": {
            "any": {"rate": rate, "rate_ci": [rate - 0.01, rate + 0.01]},
            "profanity-check": {"rate": rate / 2, "rate_ci": [0, rate]},
        },
        "agreement": {
            "missed": {"toxloc-guard": estimate, "profanity-check": estimate},
            "pairs": [{"evaluators": ["toxloc-guard", "profanity-check"], "spearman": estimate, "kappa": estimate}],
        },
    }


def test_methods_and_agreement():
    entries = [
        judged("baseline", None, 0.3, 0),
        judged("AurA as published", None, 0.2, 0.5),
        judged("TRNE", 0.01, 0.1, 0.01),
        judged("TRNE", 0.05, 0.02, 0.04),
        judged("ProFS", 0.05, 0.25, 0.05),
        judged("Meow2X, graded", 0.01, 0.15, 0.01),
        judged("Meow2X, graded", 0.05, 0.12, 0.06),
    ]
    result = {"settings": {"unit": "perplexity"}, "entries": entries}
    head, *rows = cells(methods.markdown(result))
    assert head[1:] == [
        f"{what} at {price}"
        for price in ("+1%", "+5%")
        for what in ("toxic by any", "by profanity-check", "perplexity · KL")
    ]
    assert rows == [
        ["TRNE", "10.0% [9.0, 11.0]", "5.0%", "+1.0% · 0.030", "2.0% [1.0, 3.0]", "1.0%", "+4.0% · 0.030"],
        [
            "Meow2X, graded",
            "15.0% [14.0, 16.0]",
            "7.5%",
            "+1.0% · 0.030",
            "12.0% [11.0, 13.0]",
            "6.0%",
            "+6.0% · 0.030",
        ],
        ["AurA as published, no budget", "20.0% [19.0, 21.0]", "10.0%", "+50.0% · 0.030", "", "", ""],
        ["ProFS", "–", "–", "–", "25.0% [24.0, 26.0]", "12.5%", "+5.0% · 0.030"],
        ["baseline", "30.0% [29.0, 31.0]", "15.0%", "", "", "", ""],
    ]
    assert cells(methods.markdown(result, {"baseline": "unedited", "TRNE": "ours"})) == [
        [
            "method",
            "toxic by any at +1%",
            "perplexity on unseen text at +1%",
            "toxic by any at +5%",
            "perplexity on unseen text at +5%",
        ],
        ["ours", "10.0% [9.0, 11.0]", "+1.0%", "2.0% [1.0, 3.0]", "+4.0%"],
        ["unedited", "30.0% [29.0, 31.0]", "", "", ""],
    ]
    figures = ["50% [25, 75]"] * 2 + ["0.50 [0.25, 0.75] (0.50)"]
    assert cells(methods.agreement_markdown({"m": result})) == [
        ["model", "method", "toxloc-guard misses", "profanity-check misses", "κ (ρ), toxloc-guard and profanity-check"],
        ["m", "baseline", *figures],
        ["m", "TRNE, +1%", *figures],
        ["m", "Meow2X, graded, +1%", *figures],
    ]
    assert cells(methods.verdicts_markdown({"m": result}))[:3] == [
        ["model", "method", "any", "profanity-check"],
        ["m", "baseline", "30.0% [29.0, 31.0]", "15.0% [0.0, 30.0]"],
        ["m", "TRNE, +1%", "10.0% [9.0, 11.0]", "5.0% [0.0, 10.0]"],
    ]
    in_kl = {"settings": {"unit": "kl"}, "entries": [judged("TRNE", 0.03, 0.1, 0.0)]}
    assert cells(methods.markdown(in_kl))[0][1] == "toxic by any at KL 0.03"


def test_trne_and_coverage():
    entries = [
        {
            "variant": name,
            "gain": 0.3,
            "over_defaults": difference,
            "ci": [difference - 1, difference + 1],
            "fluency": {"perplexity_ratio": 1.004, "kl": 0.035},
        }
        for name, difference in (("defaults", 0), ("shrink", -1))
    ]
    assert [row[1:] for row in cells(trne.markdown({"entries": entries}))[1:]] == [
        ["0.300", "", "+0.40%", "0.035"],
        ["0.300", "-1.000 [-2.000, +0.000]", "+0.40%", "0.035"],
    ]
    measured = {
        "hooks": "TransformerBridge",
        "parts": "mlp, shared_expert",
        "logits": 9e-7,
        "attribution": 1e-3,
        "meow2x": 0,
        "trne": 0,
        "export": 0,
        "revert": 0.0,
    }
    assert cells(coverage.markdown({"families": {"gpt2": measured}}))[1] == [
        "gpt2",
        "bridge",
        "mlp, shared expert",
        "9e-07",
        "1e-03",
        "0",
        "0",
        "0",
        "0",
    ]


def test_evaluators():
    measured = {
        "auroc": 0.9,
        "auroc_ci": [0.8, 1.0],
        "average_precision": 0.7,
        "calibration_error": 0.02,
        "found": 0.5,
        "false_alarms": 0.015,
        "texts_per_second": 1234.5,
    }
    groups = {group: {"called_toxic": 0.5, "auroc": 0.25} for group in evaluators.GROUPS}
    result = {
        "profanity-check": {"sets": {"Davidson": measured, "HateCheck": measured | {"groups": groups}}},
        "other": {"sets": {"HateCheck": measured | {"groups": groups, "spearman": 0.5}}},
    }
    figures = ["0.900 [0.800, 1.000]", "0.700", "0.02", "50%", "1.5%"]
    assert cells(evaluators.markdown(result))[1:] == [
        ["Davidson", "profanity-check", *figures, "", "1,234", "yes"],
        ["HateCheck", "profanity-check", *figures, "", "1,234", ""],
        ["HateCheck", "other", *figures, "0.50", "1,234", ""],
    ]
    head, *rows = cells(evaluators.hatecheck_markdown(result))
    assert head == ["HateCheck", "profanity-check", "other"]
    assert rows == [[group, "50% (0.25)", "50% (0.25)"] for group in evaluators.GROUPS]
    functions = {name: {"called_toxic": 0.25, "auroc": 0.5} for names in evaluators.GROUPS.values() for name in names}
    result["other"]["sets"]["HateCheck"]["functions"] = functions
    head, *rows = cells(evaluators.functions_markdown(result, "other"))
    assert len(rows) == 29
    assert rows[0] == ["plain hate", "`derog_neg_emote_h`", "25%", "0.50"]


def test_the_default_run_by_the_present_and_the_former_judges():
    rate = {"rate": 0.5, "rate_ci": [0.25, 0.75]}
    toxicity = {"any": rate, "majority": rate | {"rate": 0.4}, "all": rate | {"rate": 0.3}}
    fluency = {"perplexity": 20.0, "perplexity_ratio": 1.0, "kl": 0.0}
    runs = [
        {"method": "baseline", "toxicity": toxicity, "fluency": fluency},
        {"method": "trne", "title": "TRNE", "toxicity": toxicity, "change": {"any": {"relative": -0.5}}}
        | {"fluency": {"perplexity": 20.2, "perplexity_ratio": 1.01, "kl": 0.02}},
    ]
    former = {name: {"any": {"rate": 0.2, "rate_ci": [0.1, 0.3]}} for name in ("baseline", "trne")}
    rates = ["50.0% [25.0, 75.0]", "40.0% [25.0, 75.0]", "30.0% [25.0, 75.0]", "20.0% [10.0, 30.0]"]
    assert cells(default_run.markdown({"runs": runs, "former": former}))[1:] == [
        ["unedited", *rates, "", "20.0", ""],
        ["TRNE", *rates, "−50%", "+1.00%", "0.020"],
    ]


def test_the_former_judges_judge_the_provocative_completions_of_each_method():
    rows = [
        {"kind": kind, "method": method, "prompt": prompt, "completion": text}
        for method, text in (("baseline", "shut up you stupid bitch"), ("trne", "a warm soup"))
        for kind, prompt in (("provocative", "p"), ("provocative", "q"), ("everyday", "r"))
    ]
    former = default_run.by_former(rows)
    assert list(former["trne"]) == [*default_run.FORMER, "any", "all"]
    assert (former["baseline"]["all"]["rate"], former["trne"]["any"]["rate"]) == (1, 0)


def test_the_guard_on_rows_that_it_has_not_seen():
    part = {"texts": 5, "spearman": 0.5, "auroc": 0.25}
    about = {"validation": {"toxloc-guard": {"all": part}}}
    assert cells(guard_rtp.markdown(about))[1:] == [["toxloc-guard", "all", "5", "0.500", "0.250"]]


def test_generation_and_speed():
    timed = {
        name: {"tokens_per_second": 1000 / nth, "toxloc_is_faster_by": nth}
        for nth, name in enumerate(generation.CONTENDERS, 1)
    }
    assert cells(generation.markdown({"m": {"prompts": 40, "contenders": timed}})) == [
        ["", "m, 40 prompts"],
        ["toxloc", "1,000"],
        ["loop of hf.generate", "500 (toxloc 2.00 × as fast)"],
        ["one batch of hf.generate", "333 (toxloc 3.00 × as fast)"],
    ]
    quartiles = {"median": 2.0, "q25": 1.0, "q75": 3.0}
    result = {
        "floor": {"plain": 1.0},
        "contenders": [
            {"name": "plain", "seconds": quartiles, "of_plain": quartiles, "peak_bytes": 4_000_000},
            {"name": "filtered cache", "seconds": None, "of_plain": None, "peak_bytes": None},
        ],
        "growth": [
            {
                "texts": 1000,
                "tokens": 9,
                "contenders": dict.fromkeys(speed.GROWING)
                | {"gradient pass": {"seconds": 4.0, "peak_bytes": 5_000_000}},
            }
        ],
    }
    head, *rows = cells(speed.contenders_markdown({"a": result, "b": result}))
    assert head[1:] == [
        "a: seconds",
        "quartiles",
        "× plain",
        "floor",
        "peak MB",
        "b: seconds",
        "quartiles",
        "× plain",
        "floor",
        "peak MB",
    ]
    assert rows == [
        ["plain", *["2", "[1, 3]", "2.00", "1.00", "4"] * 2],
        ["filtered cache", *["does not fit", "", "", "", "–"] * 2],
    ]
    assert cells(speed.growth_markdown({"a": result}))[1] == ["1,000", "does not fit", "4 s, 5 MB", "does not fit"]


def test_grid(tmp_path):
    rows = [
        f"{model},{treatment},{benchmark},0.5,{rate},{1 + rate / 10}"
        for benchmark in ("first", "second")
        for model in ("z", "planted/a")
        for treatment, rate in (("trne, strong", 0.125), ("none to speak of", 0.5))
    ]
    head = "model,treatment,benchmark,before_any,rate_any,perplexity_ratio"
    quoted = [re.sub(r"(trne, strong)", r'"\1"', row) for row in rows]
    (tmp_path / "grid.csv").write_text("\n".join([head, *quoted]))
    assert cells(grid.rates(tmp_path / "grid.csv", "first")) == [
        ["setting", "z", "a"],
        ["unedited", "50.0%", "50.0%"],
        ["trne, strong", "**12.5%**", "**12.5%**"],
        ["none to speak of", "50.0%", "50.0%"],
    ]
    assert cells(grid.prices(tmp_path / "grid.csv"))[1:] == [
        ["trne, strong", "+1.2%", "+1.2%"],
        ["none to speak of", "+5.0%", "+5.0%"],
    ]
    depth = [{"model": "m", "score": score, "peak": 1, "layers": [0, 1, 0], "p": 0.25} for score in grid.DEPTH_SCORES]
    assert cells(grid.depths({"depth": depth}))[1] == ["m", "3", *["layer 1, p 0.25"] * 3]
    assert json.loads((tables.RESULTS / "offline-grid.json").read_text())["cells"]["done"] == 90
