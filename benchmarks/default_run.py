"""Run `toxloc run` with its defaults, and save its figures for the README.

    python -m benchmarks.default_run --out benchmarks/results/run-tiny.json

The result is results.json of the run, which holds no texts. Under `former` it also has the toxic rates of the same
completions by the two default evaluators of version 0.2.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import toxloc
from benchmarks import markdown as md
from toxloc.cli.output import interval
from toxloc.evaluation.evaluators.registry import get_evaluators
from toxloc.evaluation.judging import judge
from toxloc.evaluation.toxicity import toxicity
from toxloc.support.files import write_json
from toxloc.texts.prompts import PROVOCATIVE

FORMER = ("toxloc-guard@1", "profanity-check")


def main(out: Annotated[Path, typer.Option(help="File for the results (JSON).")]) -> None:
    """Run toxloc and save the content of results.json."""
    with tempfile.TemporaryDirectory() as folder:
        run = toxloc.run(out=Path(folder) / "run")
        rows = [json.loads(line) for line in (run.path / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    results = run.results | {"command": "toxloc run", "former": by_former(rows)}
    write_json(out, results)
    print(markdown(results))


def by_former(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Judge the completions of provocative prompts with the former evaluators; return the figures by method."""
    completions: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row["kind"] == PROVOCATIVE:
            completions.setdefault(row["method"], {}).setdefault(row["prompt"], []).append(row["completion"])
    judges = get_evaluators(FORMER)
    return {
        method: {name: toxicity(judged).to_dict() for name, judged in judge(list(texts.values()), judges).items()}
        for method, texts in completions.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """Return a table of the methods of a run: toxic rate, relative change, and cost."""
    rows = []
    for run in result["runs"]:
        cost = run["fluency"]
        former = {"toxicity": result["former"][run["method"]]}
        rates = [*(_rate(run, name) for name in ("any", "majority", "all")), _rate(former)]
        if run["method"] == "baseline":
            rows.append(["unedited", *rates, "", f"{cost['perplexity']:.1f}", ""])
        else:
            change = f"{run['change']['any']['relative']:+.0%}".replace("-", "−")
            rows.append([run["title"], *rates, change, f"{cost['perplexity_ratio'] - 1:+.2%}", f"{cost['kl']:.3f}"])
    return md.table(
        [
            "method",
            "toxic by any",
            "by most",
            "by all",
            "by any of 0.2's two",
            "change by any",
            "perplexity",
            "KL, nats",
        ],
        rows,
    )


def headline_markdown(run: dict[str, Any], comparison: dict[str, Any]) -> str:
    """Return the table at the top of the README: before, after and price of TRNE on two models.

    Args:
        run: result of this benchmark.
        comparison: result of `benchmarks.methods` on SmolLM2.
    """
    by_method = {entry["method"]: entry for entry in run["runs"]}
    pairs = [("toxloc-tiny (comes with toxloc)", by_method["baseline"], by_method["trne"])]
    entries = {(entry["method"], entry["budget"]): entry for entry in comparison["entries"]}
    pairs.append(("SmolLM2-135M-Instruct", entries["baseline", None], entries["TRNE", 0.01]))
    rows = [
        [name, "TRNE", _rate(before), _rate(after), f"{after['fluency']['perplexity_ratio'] - 1:.1%}"]
        for name, before, after in pairs
    ]
    return md.table(["model", "method", "toxic completions before", "after", "rise of perplexity"], rows)


def _rate(entry: dict[str, Any], judge: str = "any") -> str:
    figures = entry["toxicity"][judge]
    return interval(figures["rate"], figures["rate_ci"])


if __name__ == "__main__":
    typer.run(main)
