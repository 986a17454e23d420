"""Rank the neurons of a planted layer by the exact effect of removing each, as a reference for scores of neurons.

    python -m benchmarks.neuron_removal            # --out neuron-removal.json saves it

In the models with 64 planted neurons, every neuron of the planted layer is removed alone, and the rise of the NLL of
toxic and of neutral text is measured. The table compares the share of planted neurons among the 64 neurons with the
largest rises with that among the 64 with the highest scores, within the same layer.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import markdown as md
from benchmarks.planted import kind_of, retrieval
from benchmarks.plants import Plant, planted_model, plants
from toxloc import ContrastSet, KnockoutTest, load_contrast, localize
from toxloc.localization.score_names import ScoreName
from toxloc.models.loaded import LoadedModel
from toxloc.support.files import write_json
from toxloc.support.progress import track

SCORES: tuple[ScoreName, ...] = ("combined", "attribution")
RANKINGS = {
    "toxic": "removal: rise on toxic text",
    "difference": "removal: rise on toxic minus neutral text",
    "combined": "`combined`",
    "attribution": "`attribution`",
}


@dataclass(frozen=True)
class Removed:
    """The ranking of the neurons of one plant.

    Attributes:
        model: name of the plant.
        n_pairs: number of pairs on which the removals were measured.
        precision: share of planted neurons among the 64 highest of each ranking, by name of the ranking.
        toxic_rise: rise of the NLL of toxic text without each neuron of the layer, in nats per token.
        neutral_rise: the same of neutral text.
    """

    model: str
    n_pairs: int
    precision: dict[str, float]
    toxic_rise: list[float]
    neutral_rise: list[float]


def removed(lm: LoadedModel, plant: Plant, pairs: ContrastSet, few: ContrastSet, seed: int = 0) -> Removed:
    """Remove every neuron of the planted layer, and rank them; scores use all pairs, removals only a few."""
    ((site, units),) = plant.sites.items()
    test = KnockoutTest(lm, few, seed=seed)
    removals = [test.remove([(site, unit)]) for unit in track(range(lm.at(site).n_units), plant.name)]
    toxic, neutral = np.array([[k.toxic_rise, k.neutral_rise] for k in removals]).T
    loc = localize(lm, pairs, SCORES, draws=0, seed=seed)
    rankings = {"toxic": toxic, "difference": toxic - neutral}
    rankings |= {score: loc.neuron_scores(score)[site.layer] for score in SCORES}
    planted = np.zeros((1, len(toxic)), dtype=bool)
    planted[0, list(units or ())] = True
    precision = {name: retrieval(values[None], planted, int(planted.sum()))[0] for name, values in rankings.items()}
    return Removed(plant.name, len(few.toxic), precision, toxic.tolist(), neutral.tolist())


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants in neurons; all by default.")] = None,
    pairs: Annotated[int, typer.Option(help="Number of pairs on which removals are measured.", min=2)] = 48,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)] = None,
) -> None:
    """Compare exact removals with scores in the models with planted neurons."""
    began, known, contrast = time.perf_counter(), plants(), load_contrast()
    command = ["python -m benchmarks.neuron_removal", *(models or ()), f"--pairs {pairs} --seed {seed}"]
    results = []
    for name in models or [name for name, plant in known.items() if kind_of(plant) == "neurons"]:
        results.append(removed(planted_model(name), known[name], contrast, contrast.limited(pairs, seed), seed))
        result = {
            "command": " ".join(command),
            "seconds": round(time.perf_counter() - began),
            "removed": [asdict(r) for r in results],
        }
        if out is not None:
            write_json(out, result)
    md.show(*table(result), title="Planted neurons among the 64 highest")


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per plant, and their mean."""
    return md.table(*table(result), numbers=True)


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table: the precision of each ranking, by plant and in the mean."""
    precisions = [[r["precision"][name] for name in RANKINGS] for r in result["removed"]]
    names = [*(r["model"] for r in result["removed"]), "mean"]
    values = [*precisions, np.mean(precisions, 0)]
    rows = [[name, *(f"{x:.2f}" for x in row)] for name, row in zip(names, values, strict=True)]
    return ["plant", *RANKINGS.values()], rows


if __name__ == "__main__":
    typer.run(main)
