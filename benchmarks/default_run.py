"""Run `toxloc run` with its defaults, and save its figures for the README.

    python -m benchmarks.default_run --out benchmarks/results/run-tiny.json

The result is results.json of the run, which holds no texts.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import toxloc
from benchmarks import markdown as md
from toxloc.cli.output import interval
from toxloc.support.files import write_json


def main(out: Annotated[Path, typer.Option(help="File for the results (JSON).")]) -> None:
    """Run toxloc and save the content of results.json."""
    with tempfile.TemporaryDirectory() as folder:
        results = toxloc.run(out=Path(folder) / "run").results
    write_json(out, results | {"command": "toxloc run"})
    print(markdown(results))


def markdown(result: dict[str, Any]) -> str:
    """Return a table of the methods of a run: toxic rate, relative change, and cost."""
    rows = []
    for run in result["runs"]:
        cost = run["fluency"]
        if run["method"] == "baseline":
            rows.append(["unedited", _rate(run), "", f"{cost['perplexity']:.1f}", ""])
        else:
            change = f"{run['change']['any']['relative']:+.0%}".replace("-", "−")
            rows.append([run["title"], _rate(run), change, f"{cost['perplexity_ratio'] - 1:+.2%}", f"{cost['kl']:.3f}"])
    return md.table(["method", "toxic by any", "change", "perplexity", "KL, nats"], rows)


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


def _rate(entry: dict[str, Any]) -> str:
    figures = entry["toxicity"]["any"]
    return interval(figures["rate"], figures["rate_ci"])


if __name__ == "__main__":
    typer.run(main)
