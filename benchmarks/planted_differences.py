"""Test whether the log-probability difference of pairs finds toxicity where it was planted.

    python -m benchmarks.planted_differences       # four minutes on one core; --out planted-differences.json saves it

The models are those of `benchmarks.planted` with toxicity planted in one MLP or its neurons, and two controls. On the
built-in pairs that share a prefix, three measures compare the two texts of a pair at their first difference: the score
`counterfactual`, the same score with a baseline of zero in place of the mean over neutral text, and the exact effect of
replacing each layer by its mean (`toxloc.patch`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from benchmarks.plants import CONTROLS, mlp_layers, planted_model
from toxloc import ContrastSet, collect_contrast, load_contrast, localize, patch
from toxloc.localization.difference_statistics import collect_differences
from toxloc.localization.first_difference import first_differences
from toxloc.localization.uncertainty import Uncertainty
from toxloc.models.loaded import LoadedModel
from toxloc.support.files import write_json

MEASURES = {"counterfactual": "`counterfactual`", "zero": "baseline of zero", "patching": "exact, by the mean"}


@dataclass(frozen=True)
class LayerTest:
    """The result of one measure for one model.

    Attributes:
        model: name of the plant or the control.
        layer: planted layer; None for controls.
        measure: "counterfactual", "zero" or "patching".
        n_pairs: number of pairs.
        values: value of each layer, in nats.
        z: z of each layer.
        p_adjusted: adjusted p-value of each layer.
    """

    model: str
    layer: int | None
    measure: str
    n_pairs: int
    values: tuple[float, ...]
    z: tuple[float, ...]
    p_adjusted: tuple[float, ...]


def layer_tests(lm: LoadedModel, pairs: ContrastSet, layer: int | None, seed: int = 0) -> Iterator[LayerTest]:
    """Test every MLP of a model with every measure."""
    statistics = collect_contrast(lm, pairs, gradients=False, differences=True)
    differences = first_differences(lm, pairs)
    zero = collect_differences(lm, differences, sites=statistics.sites)

    def test(measure: str, values: np.ndarray, u: Uncertainty) -> LayerTest:
        numbers = (tuple(map(float, row)) for row in (values, u.z, u.p_adjusted))
        return LayerTest(lm.name, layer, measure, len(differences.usable), *numbers)

    for measure, s in (("counterfactual", statistics), ("zero", replace(statistics, differences=zero))):
        loc = localize(lm, pairs, ("counterfactual",), statistics=s, seed=seed)
        yield test(measure, loc.layer_scores("counterfactual"), loc.uncertainty["counterfactual"])
    exact = patch(lm, pairs, statistics.sites, by="mean", seed=seed)
    assert exact.uncertainty is not None
    yield test("patching", exact.effect, exact.uncertainty)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants and controls; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare pairs at their first difference in every planted model, and compare the results with the truth."""
    began, known, pairs = time.perf_counter(), mlp_layers(), load_contrast()
    tests: list[LayerTest] = []
    for name in models or [*known, *CONTROLS]:
        tests += layer_tests(planted_model(name), pairs, known.get(name), seed)
    result = {
        "command": f"python -m benchmarks.planted_differences --seed {seed}",
        "seconds": round(time.perf_counter() - began),
        "tests": [asdict(test) for test in tests],
    }
    show(tests)
    if out is not None:
        write_json(out, result)


def show(tests: Sequence[LayerTest]) -> None:
    """Print the z of every layer."""
    layers = map(str, range(len(tests[0].z)))
    table = Table("model", "layer", "measure", *layers, "p", title="z of each layer, and the adjusted p of the plant")
    for test in tests:
        p = "–" if test.layer is None else f"{test.p_adjusted[test.layer]:.3f}"
        planted = "–" if test.layer is None else str(test.layer)
        table.add_row(test.model, planted, test.measure, *(f"{z:+.1f}" for z in test.z), p)
    Console().print(table)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per model, and the z of each measure in one column."""
    by_key = {(test["model"], test["measure"]): test for test in result["tests"]}
    rows = []
    for model in dict.fromkeys(test["model"] for test in result["tests"]):
        tests = [by_key[model, measure] for measure in MEASURES]
        rows.append([model, *map(cell, tests)])
    return md.table(["model", *(f"{title}: z, next, adjusted p" for title in MEASURES.values())], rows)


def cell(test: dict[str, Any]) -> str:
    """Return z and p of the planted layer (of a control, the top layer), and the highest z of the other layers."""
    layer = int(np.argmax(test["z"])) if test["layer"] is None else test["layer"]
    others = max(np.delete(test["z"], layer))
    of_layer = f"{test['z'][layer]:+.1f}", f"{others:+.1f}", md.p_value(test["p_adjusted"][layer])
    shown = md.SIDE_BY_SIDE.join(of_layer)
    return shown if test["layer"] is not None else f"layer {layer}: {shown}"


if __name__ == "__main__":
    typer.run(main)
