"""Test whether the scores find toxicity where it was planted, in eleven planted models and two controls.

    python -m benchmarks.planted                    # under ten minutes on two cores; --out planted.json saves it
    python -m benchmarks.planted layer1 layer6 --save planted       # writes the models as folders, to use elsewhere

Each planted model is toxloc-tiny-clean in which one layer's MLP, or 64 neurons of one layer, were trained on toxic text
while all other weights were frozen (`benchmarks/models`, `benchmarks/recipes`). Every score localizes on two contrast
sets: the built-in set, and a set sampled from the model and labelled by the evaluators. The controls, the clean model
and toxloc-tiny, have no planted toxicity; they show the result of a score when there is nothing to find.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float64
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from benchmarks import markdown as md
from toxloc import ContrastSet, Localization, ToxlocError, load_contrast, load_model, localize, plots
from toxloc.localization.first_difference import first_differences
from toxloc.localization.score_names import ScoreName
from toxloc.localization.score_table import SCORES
from toxloc.models.loaded import LoadedModel
from toxloc.support.files import write_json

MODELS = Path(__file__).parent / "models"
CLEAN = MODELS / "toxloc-tiny-clean"
PLANTED = MODELS / "planted"
CONTROLS = ("clean", "toxloc-tiny")
CONTRASTS = ("builtin", "sampled")

DENSE_SCORES = tuple(name for name, score in SCORES.items() if score.only is None)


@dataclass(frozen=True)
class Truth:
    """Site of a plant: its layer, and its neurons unless the whole MLP was trained."""

    layer: int
    neurons: tuple[int, ...] | None


def truths() -> dict[str, Truth]:
    """Return the site of every plant by the name of the plant."""
    plants = json.loads((PLANTED / "ground_truth.json").read_text(encoding="utf-8"))
    return {name: Truth(plant["layer"], plant["neurons"] and tuple(plant["neurons"])) for name, plant in plants.items()}


def planted_model(name: str) -> LoadedModel:
    """Build a planted model from the clean one; "clean" and "toxloc-tiny" are the controls.

    Raises:
        ToxlocError: there is no plant with this name.
    """
    if name == "toxloc-tiny":
        return load_model(name)
    lm = load_model(str(CLEAN))
    lm.name = name
    if name == "clean":
        return lm
    known = truths()
    if name not in known:
        raise ToxlocError(f"There is no plant {name!r}; choose one of {', '.join([*known, *CONTROLS])}.")
    mlp = lm.hf.transformer.h[known[name].layer].mlp
    weights = load_file(PLANTED / f"{name}.safetensors")
    neurons = weights.pop("neurons", slice(None))
    with torch.no_grad():
        for key, value in weights.items():
            target = mlp.get_parameter(key)
            part = target[neurons] if key in ("c_proj.weight", "c_fc.bias") else target[..., neurons]
            assert part.shape == value.shape
            if key in ("c_proj.weight", "c_fc.bias"):
                target[neurons] = value.float()
            else:
                target[..., neurons] = value.float()
    return lm


@dataclass(frozen=True)
class Finding:
    """Result of one score for one model and one contrast set.

    Attributes:
        model: name of the plant or the control.
        contrast: "builtin" or "sampled".
        score: name of the score.
        top: layer with the highest score.
        p_adjusted: adjusted p-value of the layer `top`; None if the score has no null distribution.
        rank: rank of the true layer, 1 for the highest score; None for controls.
        margin: score of the true layer minus the highest score of the other layers, divided by the range of the
            scores; None for controls.
        precision: share of planted neurons among the k neurons with the highest scores, where k is the number of
            planted neurons (64); None except for neuron plants.
        average_precision: mean of the precisions at the ranks of the planted neurons; None except for neuron plants.
        precision_in_layer: like `precision`, among the neurons of the true layer only.
    """

    model: str
    contrast: str
    score: str
    top: int
    p_adjusted: float | None
    rank: int | None = None
    margin: float | None = None
    precision: float | None = None
    average_precision: float | None = None
    precision_in_layer: float | None = None


def findings(loc: Localization, model: str, contrast: str, truth: Truth | None) -> Iterator[Finding]:
    """Compare every score of a localization with the site of the plant; `truth` is None for controls."""
    for score in loc.scores:
        layers = loc.layer_scores(score)
        top = loc.top_layers(score, 1)[0]
        uncertainty = loc.uncertainty.get(score)
        p = float(uncertainty.p_adjusted[top]) if uncertainty else None
        if truth is None:
            yield Finding(model, contrast, score, top, p)
            continue
        others = np.delete(layers, truth.layer)
        precision, average, in_layer = None, None, None
        if truth.neurons:
            planted = np.zeros(loc.neuron_scores(score).shape, dtype=bool)
            planted[truth.layer, list(truth.neurons)] = True
            precision, average = retrieval(loc.neuron_scores(score), planted, len(truth.neurons))
            layer = [truth.layer]
            in_layer, _ = retrieval(loc.neuron_scores(score)[layer], planted[layer], len(truth.neurons))
        margin = float((layers[truth.layer] - others.max()) / (np.ptp(layers) or 1.0))
        yield Finding(
            model,
            contrast,
            score,
            top,
            p,
            1 + int((others > layers[truth.layer]).sum()),
            margin,
            precision,
            average,
            in_layer,
        )


def retrieval(
    scores: Float64[np.ndarray, "n_layers d_mlp"], planted: Bool[np.ndarray, "n_layers d_mlp"], k: int
) -> tuple[float, float]:
    """Compute the precision among the k highest scores, and the average precision."""
    hits = planted.ravel()[np.argsort(-scores, axis=None, kind="stable")]
    ranks = np.flatnonzero(hits)
    return float(hits[:k].mean()), float(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))


def contrast_set(kind: str, lm: LoadedModel, pairs: int, seed: int) -> ContrastSet:
    """Return the built-in contrast set, or a contrast set sampled from the model."""
    if kind == "builtin":
        return load_contrast().limited(pairs, seed)
    return ContrastSet.from_model(lm, n=pairs, max_rounds=4, seed=seed)


def scores_for(lm: LoadedModel, contrast: ContrastSet, scores: Sequence[str]) -> tuple[ScoreName, ...]:
    """Return the scores that a contrast set allows: those of pairs only if enough pairs share a prefix."""
    try:
        first_differences(lm, contrast)
    except ToxlocError as error:
        scores = [name for name in scores if not SCORES[name].paired]
        print(f"{lm.name}, without the scores of pairs: {error}")
    return cast("tuple[ScoreName, ...]", tuple(scores))


def summary(results: Sequence[Finding]) -> list[dict[str, float | int | str | None]]:
    """Summarise the findings over all plants, in one row per contrast set and score."""
    rows: list[dict[str, float | int | str | None]] = []
    for contrast in dict.fromkeys(f.contrast for f in results):
        for score in dict.fromkeys(f.score for f in results):
            selected = [f for f in results if f.contrast == contrast and f.score == score]
            if not selected:
                continue
            layers = [f for f in selected if f.rank is not None and f.precision is None]
            neurons = [f for f in selected if f.precision is not None]
            rows.append(
                {
                    "contrast": contrast,
                    "score": score,
                    "layers_found": sum(f.rank == 1 for f in layers),
                    "layer_plants": len(layers),
                    "mean_rank": _mean([f.rank for f in layers]),
                    "mean_margin": _mean([f.margin for f in layers]),
                    "neuron_layers_found": sum(f.rank == 1 for f in neurons),
                    "neuron_plants": len(neurons),
                    "precision_at_64": _mean([f.precision for f in neurons]),
                    "average_precision": _mean([f.average_precision for f in neurons]),
                    "precision_in_layer": _mean([f.precision_in_layer for f in neurons]),
                }
            )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants and controls; all by default.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Score; repeat for several; all by default.")] = None,
    pairs: Annotated[int, typer.Option(help="Number of pairs of the built-in contrast set.", min=8)] = 400,
    sampled_pairs: Annotated[int, typer.Option(help="Number of pairs sampled from each model.", min=8)] = 64,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to draw: attribution by depth in all layer plants, on "
            "the built-in contrast set. Needs toxloc[png]."
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Save each model to a subfolder of this folder, and stop.")] = None,
) -> None:
    """Localize toxicity in every planted model with every score, and compare the results with the truth."""
    if save is not None:
        for name in models or truths():
            lm = planted_model(name)
            lm.hf.save_pretrained(save / name)
            lm.tokenizer.save_pretrained(save / name)
        return
    began = time.perf_counter()
    known = truths()
    results: list[Finding] = []
    drawn: dict[str, Localization] = {}
    for name in models or [*known, *CONTROLS]:
        lm = planted_model(name)
        for kind, count in zip(CONTRASTS, (pairs, sampled_pairs), strict=True):
            try:
                contrast = contrast_set(kind, lm, count, seed)
            except ToxlocError as error:  # the clean model hardly ever writes toxic text
                print(f"{name}, {kind}: {error}")
                continue
            loc = localize(lm, contrast, scores_for(lm, contrast, score or DENSE_SCORES), seed=seed)
            results += findings(loc, name, kind, known.get(name))
            if kind == "builtin" and name in known and known[name].neurons is None:
                drawn[name] = loc
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    result = {
        "command": f"python -m benchmarks.planted --pairs {pairs} --sampled-pairs {sampled_pairs} --seed {seed}",
        "seconds": round(time.perf_counter() - began),
        "summary": summary(results),
        "findings": [asdict(f) for f in results],
    }
    show(results)
    if out is not None:
        write_json(out, result)
    if figure is not None:
        plots.write_png(plots.relative_depth(drawn), figure)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per score, with both contrast sets in each cell."""
    figures = {
        "mean_rank": ".1f",
        "mean_margin": "+.2f",
        "precision_at_64": ".2f",
        "average_precision": ".2f",
        "precision_in_layer": ".2f",
    }
    head = [
        "score",
        "layer plants found: built-in · sampled",
        "mean rank of the true layer",
        "margin",
        "neuron plants: precision@64",
        "average precision",
        "precision@64 within the true layer",
    ]
    rows = []
    for score in dict.fromkeys(row["score"] for row in result["summary"]):
        both = [row for row in result["summary"] if row["score"] == score]
        shown = [
            [f"{row['layers_found']}/{row['layer_plants']}" for row in both],
            *([_number(row[name], layout) for row in both] for name, layout in figures.items()),
        ]
        rows.append([f"`{score}`", *map(md.SIDE_BY_SIDE.join, shown)])
    return md.table(head, rows)


def controls_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: the layer that every score names in the controls."""
    controls = [f for f in result["findings"] if f["rank"] is None]
    columns = dict.fromkeys((f["model"], f["contrast"]) for f in controls)
    by_key = {(f["model"], f["contrast"], f["score"]): f for f in controls}
    rows = [
        [f"`{score}`", *(_named(by_key.get((*column, score))) for column in columns)]
        for score in dict.fromkeys(f["score"] for f in controls)
    ]
    names = (f"{model}, {contrast.replace('builtin', 'built-in')}" for model, contrast in columns)
    return md.table(["score", *names], rows)


def _named(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return "–"
    p = finding["p_adjusted"]
    return f"layer {finding['top']}" + ("" if p is None else f", p {p:.3f}")


def show(results: Sequence[Finding]) -> None:
    """Print the summary, and the layer that every score names in the controls."""
    console = Console()
    table = Table(
        "contrast",
        "score",
        "layers found",
        "mean rank",
        "margin",
        "neuron plants",
        "precision@64",
        "average precision",
        "in true layer",
        title="Planted toxicity",
    )
    for row in summary(results):
        table.add_row(
            str(row["contrast"]),
            str(row["score"]),
            f"{row['layers_found']}/{row['layer_plants']}",
            _number(row["mean_rank"], ".1f"),
            _number(row["mean_margin"], "+.2f"),
            f"{row['neuron_layers_found']}/{row['neuron_plants']}",
            _number(row["precision_at_64"], ".2f"),
            _number(row["average_precision"], ".2f"),
            _number(row["precision_in_layer"], ".2f"),
        )
    console.print(table)
    controls = Table("model", "contrast", "score", "names layer", "adjusted p", title="Controls: nothing planted")
    for f in results:
        if f.rank is None:
            controls.add_row(f.model, f.contrast, f.score, str(f.top), _number(f.p_adjusted, ".3f"))
    console.print(controls)


def _number(value: float | int | str | None, layout: str) -> str:
    return "–" if value is None else format(value, layout)


if __name__ == "__main__":
    typer.run(main)
