"""`toxloc compare`: two evaluations."""

from typing import Annotated

import typer
from rich.table import Table

from .output import interval, terminal


def compare(
    one: Annotated[str, typer.Argument(help="What toxloc evaluate wrote, such as the baseline.")],
    other: Annotated[str, typer.Argument(help="The same of another model, or with an intervention applied.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed for the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what changed from one finished evaluation to another of the same prompts, and whether it may be noise.

    Evaluations under different protocols, decodings, prompts or thresholds are refused.
    """
    from ..evaluation.comparison import compare as compare_both
    from ..evaluation.result import load_evaluation

    before, after = load_evaluation(one), load_evaluation(other)
    found = compare_both(before, after, seed)
    if json:
        from json import dumps

        print(dumps(found.to_dict(), indent=2))
        return
    table = Table(
        "toxic by",
        before.name,
        after.name,
        "difference",
        "relative",
        "p",
        title=f"{len(before.prompts)} prompts × {before.figures['decoding']['samples']}",
    )
    for name, apart in found.differences.items():
        change = found.changes[name]
        table.add_row(
            name,
            *(f"{e.judgements[name].toxic.mean():.1%}" for e in (before, after)),
            interval(apart.mean, apart.ci, "+.1%"),
            interval(change.relative, change.ci, "+.0%") if change else "–",
            f"{apart.p:.2g}",
        )
    language = Table("language", before.name, after.name)
    for name, both in found.figures.items():
        language.add_row(name, *("–" if value is None else f"{value:.4g}" for value in both))
    console = terminal()
    console.print(table)
    console.print(language)
