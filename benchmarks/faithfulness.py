"""Measure which scores order units so that few of them keep a model's preference for toxic text.

    python -m benchmarks.faithfulness           # under six minutes on one core; --out faithfulness.json saves it

Every score localizes the MLPs and the attentions of two planted models and of toxloc-tiny on the larger part of the
built-in pairs. On held-out pairs, the units with the highest scores are kept or removed, and all others, or the removed
ones, are replaced by their mean over neutral text (`toxloc.faithfulness`). D is that over the endings, of the pairs in
which the intact model prefers the toxic text.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from benchmarks.figures import SCALE, WIDTH
from benchmarks.plants import planted_model
from toxloc import Faithfulness, faithfulness, load_contrast, localize, plots
from toxloc.cli.output import interval
from toxloc.localization.score_names import ScoreName
from toxloc.support.files import write_json

MODELS = ("layer3", "neurons3", "toxloc-tiny")
SCORES: tuple[ScoreName, ...] = ("attribution", "counterfactual", "activation", "combined")
SHARES = (0.01, 0.05, 0.2, 0.5, 1.0)
MEASURES = {"CPR": "CPR", "CMD": "CMD", "area": "area, removed"}  # titles of the columns


def measured(name: str, n_held_out: int, controls: int, seed: int) -> Faithfulness:
    """Localize a model on some of the built-in pairs, and measure faithfulness on the others."""
    lm, everything = planted_model(name), load_contrast()
    fit, held_out = everything.split(1 - n_held_out / len(everything.toxic), seed)
    loc = localize(lm, fit, SCORES, parts=("mlp", "attention"), draws=0)
    return faithfulness(
        lm,
        held_out,
        loc,
        over="ending",
        shares=SHARES,
        controls=controls,
        only_preferred=True,
        seed=seed,
        max_length=24,
    )


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants and controls.")] = None,
    held_out: Annotated[int, typer.Option(help="Number of pairs to measure on.", min=8)] = 120,
    controls: Annotated[int, typer.Option(help="Number of random controls of each score.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for PNG files. Needs toxloc[png].")] = None,
) -> None:
    """Measure every score in every model, and print and save the areas."""
    began, rows = time.process_time(), []
    for name in models or MODELS:
        result = measured(name, held_out, controls, seed)
        rows.append(
            {
                "model": name,
                "n_pairs": result.n_pairs,
                "n_units": result.n_units,
                "intact": result.intact,
                "empty": result.empty,
                "gap_ci": list(result.gap_ci),
                "n_forward_passes": result.n_forward_passes,
                "curves": result.table().to_dict("records"),
                "areas": result.areas().to_dict("records"),
            }
        )
        if figures is not None:
            figure = plots.faithfulness(result)
            plots.write_png(figure, figures / f"faithfulness-{name}.png", width=WIDTH, scale=SCALE)
    show(rows)
    if out is not None:
        command = f"python -m benchmarks.faithfulness --held-out {held_out} --controls {controls} --seed {seed}"
        seconds = round(time.process_time() - began)
        write_json(out, {"command": command, "cpu_seconds": seconds, "models": rows})


def show(rows: list[dict[str, Any]]) -> None:
    """Print the areas of every score."""
    table = Table("model", "pairs", "score", "measure", "area", "controls", "above the controls")
    for row in rows:
        for area in row["areas"]:
            values = _area(area), f"{area['controls']:.3f}", _above(area)
            table.add_row(row["model"], str(row["n_pairs"]), area["score"], MEASURES[area["measure"]], *values)
    Console().print(table)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per model and score, with each area minus that of controls."""
    rows = []
    for row in result["models"]:
        for score in dict.fromkeys(area["score"] for area in row["areas"]):
            areas = {area["measure"]: area for area in row["areas"] if area["score"] == score}
            cells = [f"{areas[measure]['value']:.3f}{md.SIDE_BY_SIDE}{_above(areas[measure])}" for measure in MEASURES]
            rows.append([f"{row['model']}, {row['n_pairs']} pairs", f"`{score}`", *cells])
    return md.table(["model", "score", *(f"{title}: area, minus controls" for title in MEASURES.values())], rows)


def _area(area: dict[str, Any]) -> str:
    return interval(area["value"], (area["low"], area["high"]), ".3f")


def _above(area: dict[str, Any]) -> str:
    return interval(area["above_controls"], (area["above_low"], area["above_high"]), "+.3f")


if __name__ == "__main__":
    typer.run(main)
