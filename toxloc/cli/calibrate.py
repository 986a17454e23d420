"""`toxloc calibrate`: choose the threshold of an evaluator."""

import shlex
from typing import Annotated

import typer

from .options import INPUTS, MEASUREMENT
from .output import interval, terminal


def calibrate(
    evaluator: Annotated[str, typer.Argument(help="Evaluator as NAME or NAME=SOURCE. See docs/evaluators.md.")],
    texts: Annotated[
        str,
        typer.Option(
            help="Everyday texts, none of them toxic, of the kind that will be judged: builtin, a text file with one "
            "text per line, or a table with a text column.",
            rich_help_panel=INPUTS,
        ),
    ] = "builtin",
    rate: Annotated[
        float,
        typer.Option(
            help="Largest share of these texts that may be called toxic (false-positive rate).",
            rich_help_panel=MEASUREMENT,
        ),
    ] = 0.01,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose the lowest threshold at which an evaluator calls at most a given share of everyday texts toxic.

    Pass the result to `--evaluator` as NAME@THRESHOLD.
    """
    from ..evaluation.calibration import calibrate as choose_threshold
    from ..evaluation.evaluators.registry import get_evaluators
    from ..texts.loading import load_neutral

    (judge,) = get_evaluators([evaluator])
    everyday = load_neutral(texts, limit=None, min_words=1)
    result = choose_threshold(judge, everyday.texts, rate)
    if json:
        from json import dumps

        print(dumps(result.to_dict(), indent=2))
        return
    console = terminal()
    console.print(
        f"{result.evaluator} on {result.n_texts} everyday texts of {everyday.name}: it calls {result.rate_before:.2%} "
        f"of them toxic at its current threshold of {result.threshold_before:g}, and "
        f"{interval(result.rate, result.rate_ci, '.2%')} at a threshold of {result.threshold:g}."
    )
    spec = f"{evaluator.rpartition('@')[0] or evaluator}@{result.threshold:g}"
    console.print(f"To use this threshold: --evaluator {shlex.quote(spec)}", soft_wrap=True)
