"""`toxloc compare`: compare two evaluations."""

from typing import Annotated

import typer
from rich.table import Table

from .output import interval, terminal


def compare(
    before: Annotated[
        str, typer.Argument(help="Folder that toxloc evaluate wrote, such as that of the unedited model.")
    ],
    after: Annotated[
        str,
        typer.Argument(help="Folder to compare with, such as that of another model or with an intervention applied."),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed for the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two finished evaluations of the same prompts: differences with 95% intervals and p-values.

    Evaluations with different protocols, decodings, prompts or thresholds are refused.
    """
    from ..evaluation.comparison import compare as compare_evaluations
    from ..evaluation.result import load_evaluation

    left, right = load_evaluation(before), load_evaluation(after)
    comparison = compare_evaluations(left, right, seed)
    if json:
        from json import dumps

        print(dumps(comparison.to_dict(), indent=2))
        return
    table = Table(
        "toxic by",
        left.name,
        right.name,
        "difference",
        "relative change",
        "p",
        title=f"{len(left.prompts)} prompts × {left.figures['decoding']['samples']} completions",
    )
    for name, difference in comparison.differences.items():
        change = comparison.changes[name]
        table.add_row(
            name,
            *(f"{e.judgements[name].toxic.mean():.1%}" for e in (left, right)),
            interval(difference.mean, difference.ci, "+.1%"),
            interval(change.relative, change.ci, "+.0%") if change else "–",
            f"{difference.p:.2g}",
        )
    language = Table("language", left.name, right.name)
    for name, values in comparison.figures.items():
        language.add_row(name, *("–" if value is None else f"{value:.4g}" for value in values))
    console = terminal()
    console.print(table)
    console.print(language)
