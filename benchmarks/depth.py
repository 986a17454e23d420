"""Test whether the logit lens shows at which depth toxicity was planted.

    python -m benchmarks.depth                     # three minutes of one core; --out depth.json saves it
    python -m benchmarks.depth clean layer6

The models are those of `benchmarks.planted`: eleven with toxicity planted in a known layer, and two controls. SmolLM2
is measured too; any other name is a model for `toxloc.load_model`. On the built-in pairs that share a prefix,
`toxloc.logit_lens` measures with every baseline how much likelier the toxic than the neutral word is at each depth.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from benchmarks.planted_differences import cell
from benchmarks.plants import CONTROLS, mlp_layers, planted_model
from toxloc import ContrastSet, load_contrast, load_model, logit_lens
from toxloc.localization.logit_lens import Baseline
from toxloc.models.loaded import LoadedModel
from toxloc.support.files import write_json

TITLES = {"neutral": "`neutral`", "other_prefixes": "`other_prefixes`", "none": "`none`"}


@dataclass(frozen=True)
class DepthTest:
    """The logit lens of one model with one baseline.

    Attributes:
        model: name of the plant, the control or the model.
        layer: planted layer; None for the others.
        baseline: "neutral", "other_prefixes" or "none".
        n_pairs: number of pairs.
        first_depth: see `LogitLens.first_depth`.
        difference: D at each depth, in nats.
        low: lower end of the 95% interval of D at each depth.
        high: upper end of the 95% interval of D at each depth.
        difference_p_adjusted: adjusted p-value of D at each depth.
        values: step of each block, in nats.
        z: z of each step.
        p_adjusted: adjusted p-value of each step.
    """

    model: str
    layer: int | None
    baseline: str
    n_pairs: int
    first_depth: int | None
    difference: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    difference_p_adjusted: tuple[float, ...]
    values: tuple[float, ...]
    z: tuple[float, ...]
    p_adjusted: tuple[float, ...]


def depth_tests(lm: LoadedModel, pairs: ContrastSet, layer: int | None, seed: int = 0) -> Iterator[DepthTest]:
    """Measure one model with every baseline."""
    for baseline in get_args(Baseline):
        lens = logit_lens(lm, pairs, baseline, seed=seed)
        u, steps = lens.uncertainty, lens.step_uncertainty
        assert u is not None and steps is not None
        by_depth = lens.difference, u.low, u.high, u.p_adjusted
        by_block = lens.step, steps.z, steps.p_adjusted
        numbers = (tuple(map(float, values)) for values in (*by_depth, *by_block))
        yield DepthTest(lm.name, layer, baseline, lens.n_pairs, lens.first_depth, *numbers)


def main(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models; all plants, the controls and SmolLM2 by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure the logit lens of every model, and compare its steps with the truth."""
    began, known, pairs = time.perf_counter(), mlp_layers(), load_contrast()
    names = models or [*known, *CONTROLS, "smollm2-135m"]
    tests: list[DepthTest] = []
    for name in names:
        lm = planted_model(name) if name in (*known, *CONTROLS) else load_model(name)
        tests += depth_tests(lm, pairs, known.get(name), seed)
    show(tests)
    if out is not None:
        result = {
            "command": " ".join(["python -m benchmarks.depth", *(models or []), f"--seed {seed}"]),
            "seconds": round(time.perf_counter() - began),
            "tests": [asdict(test) for test in tests],
        }
        write_json(out, result)


def show(tests: Sequence[DepthTest]) -> None:
    """Print D at the output and the z of every step."""
    table = Table(
        "model", "layer", "baseline", "D at the output", "z of the steps", "p of the plant", title="Logit lens"
    )
    for test in tests:
        p = "–" if test.layer is None else f"{test.p_adjusted[test.layer]:.3f}"
        planted = "–" if test.layer is None else str(test.layer)
        steps = " ".join(f"{z:+.1f}" for z in test.z)
        table.add_row(test.model, planted, test.baseline, f"{test.difference[-1]:+.2f}", steps, p)
    Console().print(table)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: D at the output, and z of the planted step with each baseline."""
    by_key = {(test["model"], test["baseline"]): test for test in result["tests"]}
    rows = []
    for model in dict.fromkeys(test["model"] for test in result["tests"]):
        tests = [by_key[model, baseline] for baseline in TITLES]
        rows.append([model, _output(tests[0]), *map(cell, tests)])
    head = ["model", "D at the output, `neutral`", *(f"{title}: z, next, adjusted p" for title in TITLES.values())]
    return md.table(head, rows)


def _output(test: dict[str, Any]) -> str:
    return f"{test['difference'][-1]:+.2f} [{test['low'][-1]:+.2f}, {test['high'][-1]:+.2f}]"


if __name__ == "__main__":
    typer.run(main)
