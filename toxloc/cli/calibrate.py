"""`toxloc calibrate`: a threshold for an evaluator."""

from typing import Annotated

import typer

from .options import HOW, WHAT
from .output import interval, terminal


def calibrate(
    evaluator: Annotated[str, typer.Argument(help="NAME or NAME=SOURCE. See docs/evaluators.md.")],
    texts: Annotated[
        str,
        typer.Option(
            help="Everyday texts, none of them toxic, like those that will be judged: a "
            "file, one text per line or a table with a text column; or builtin.",
            rich_help_panel=WHAT,
        ),
    ] = "builtin",
    rate: Annotated[float, typer.Option(help="Share of them that may be called toxic.", rich_help_panel=HOW)] = 0.01,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the threshold at which an evaluator calls at most a given share of everyday texts toxic.

    Give the result to `--evaluator` as NAME@THRESHOLD.
    """
    from ..evaluation.calibration import calibrate as find
    from ..evaluation.evaluators.registry import get_evaluators
    from ..texts.loading import load_neutral

    (judge,) = get_evaluators([evaluator])
    everyday = load_neutral(texts, limit=None, min_words=1)
    found = find(judge, everyday.texts, rate)
    if json:
        from json import dumps

        print(dumps(found.to_dict(), indent=2))
        return
    console = terminal()
    console.print(
        f"{found.n_texts} everyday texts of {everyday.name}: at its threshold of "
        f"{found.threshold_before:g}, {found.evaluator} calls {found.rate_before:.2%} of them toxic; at "
        f"{found.threshold:g}, {interval(found.rate, found.rate_ci, '.2%')}."
    )
    spec = f"{evaluator.rpartition('@')[0] or evaluator}@{found.threshold:g}"
    console.print(f"Use it: --evaluator {spec}", soft_wrap=True)
