"""Test whether the scores find toxicity where it was planted, in all planted models and two controls.

    python -m benchmarks.planted                    # half an hour on one core; --out planted.json saves it
    python -m benchmarks.planted layer1 head5 --save planted       # writes the models as folders, to use elsewhere

Each planted model is toxloc-tiny-clean in which a known part was trained on toxic text while all other weights were
frozen: the MLP or the attention of one layer, 64 neurons, one head, or an MLP and an attention of two layers
(`benchmarks/models`, `benchmarks/recipes`). Every score localizes on two contrast sets: the built-in set, and a set
sampled from the model and labelled by the evaluators. The sites are all MLPs and all attentions. The controls, the
clean model and toxloc-tiny, have no planted toxicity; they show the result of a score when there is nothing to find.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from jaxtyping import Bool, Float64

from benchmarks import markdown as md
from benchmarks.plants import CONTROLS, Plant, planted_model, plants
from toxloc import ContrastSet, Localization, ToxlocError, contrast_from_model, load_contrast, localize, plots
from toxloc.localization.first_difference import first_differences
from toxloc.localization.score_names import ScoreName
from toxloc.localization.score_table import SCORES
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import BySite, Part, Site
from toxloc.support.files import write_json

CONTRASTS = ("builtin", "sampled")
PARTS: tuple[Part, ...] = ("mlp", "attention")
KINDS = {"mlp": "MLPs", "neurons": "neurons", "attention": "attentions", "head": "heads", "two": "two sites"}
ALPHA = 0.05
SAMPLES, ROUNDS = 8, 8  # completions per prompt and round, and rounds of sampling

DENSE_SCORES = tuple(name for name, score in SCORES.items() if score.only is None)


@dataclass(frozen=True)
class Finding:
    """Result of one score for one model and one contrast set.

    Attributes:
        model: name of the plant or the control.
        kind: "mlp", "neurons", "attention", "head" or "two" for a plant in two sites; None for controls.
        contrast: "builtin" or "sampled".
        score: name of the score.
        top: site with the highest score, such as "3.mlp".
        p_adjusted: adjusted p-value of the site `top`; None if the score has no null distribution.
        rank: rank of the true site, 1 for the highest score; of two true sites, the rank of the lower one among the
            other sites. None for controls.
        p_true: adjusted p-value of the true site, or the larger one of two; None for controls and scores without null.
        margin: the lowest score of a true site minus the highest score of the other sites, divided by the range of the
            scores; None for controls.
        precision: share of planted units among the k units of their part with the highest scores, where k is the number
            of planted units (64 neurons or 1 head); None except for plants in units.
        average_precision: mean of the precisions at the ranks of the planted units; None except for plants in units.
        precision_in_site: like `precision`, among the units of the true site only.
    """

    model: str
    kind: str | None
    contrast: str
    score: str
    top: str
    p_adjusted: float | None
    rank: int | None = None
    p_true: float | None = None
    margin: float | None = None
    precision: float | None = None
    average_precision: float | None = None
    precision_in_site: float | None = None

    @property
    def first(self) -> bool:
        """Whether the true sites have higher scores than all other sites."""
        return self.rank == 1

    @property
    def significant(self) -> bool:
        """Whether the true sites have higher scores than all other sites, with an adjusted p-value below .05."""
        return self.first and self.p_true is not None and self.p_true < ALPHA


def kind_of(plant: Plant) -> str:
    """Return the kind of a plant, a key of `KINDS`."""
    if len(plant.sites) > 1:
        return "two"
    (site,) = plant.sites
    return {"mlp": "neurons", "attention": "head"}[site.part] if plant.units else site.part


def findings(loc: Localization, model: str, contrast: str, plant: Plant | None) -> Iterator[Finding]:
    """Compare every score of a localization with the sites of the plant; `plant` is None for controls."""
    for score in loc.scores:
        values, p = loc.site_scores(score), _adjusted(loc, score)
        top = max(values, key=lambda site: values[site])
        if plant is None:
            yield Finding(model, None, contrast, score, str(top), p.get(top))
            continue
        lowest = min(values[site] for site in plant.sites)
        others = np.array([value for site, value in values.items() if site not in plant.sites])
        rank, margin = 1 + int((others > lowest).sum()), float(lowest - others.max())
        p_true = max(p[site] for site in plant.sites) if p else None
        of_units = _retrieval(loc, score, plant) if plant.units else (None, None, None)
        margin /= max(values.values()) - min(values.values()) or 1.0
        yield Finding(model, kind_of(plant), contrast, score, str(top), p.get(top), rank, p_true, margin, *of_units)


def _adjusted(loc: Localization, score: str) -> BySite[float]:
    """Return the adjusted p-value of every site; empty if the score has no null distribution."""
    known = {part: loc.part_uncertainty(score, part) for part in loc.parts}
    return BySite(
        {
            site: float(p)
            for part, uncertainty in known.items()
            if uncertainty is not None
            for site, p in zip(loc.sites(part), uncertainty.p_adjusted, strict=True)
        }
    )


def _retrieval(loc: Localization, score: str, plant: Plant) -> tuple[float, float, float]:
    """Return the precision and the average precision in all sites of the plant's part, and the precision in its site.

    `plant` is in units of one site.
    """
    ((true, units),) = plant.sites.items()
    scores = loc.neuron_scores(score, true.part)
    row = loc.sites(true.part).index(true)
    planted = np.zeros(scores.shape, dtype=bool)
    planted[row, list(units or ())] = True
    k = int(planted.sum())
    return *retrieval(scores, planted, k), retrieval(scores[[row]], planted[[row]], k)[0]


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
    return contrast_from_model(lm, n=pairs, samples=SAMPLES, max_rounds=ROUNDS, seed=seed)


def scores_for(lm: LoadedModel, contrast: ContrastSet, scores: Sequence[str]) -> tuple[ScoreName, ...]:
    """Return the scores that a contrast set allows: those of pairs only if enough pairs share a prefix."""
    try:
        first_differences(lm, contrast)
    except ToxlocError as error:
        scores = [name for name in scores if not SCORES[name].paired]
        print(f"{lm.name}, without the scores of pairs: {error}")
    return cast("tuple[ScoreName, ...]", tuple(scores))


def summary(results: Sequence[Finding]) -> list[dict[str, Any]]:
    """Summarise the findings over all plants, in one row per contrast set and score."""
    rows: list[dict[str, Any]] = []
    for contrast in dict.fromkeys(f.contrast for f in results):
        for score in dict.fromkeys(f.score for f in results):
            selected = [f for f in results if f.contrast == contrast and f.score == score and f.kind is not None]
            if not selected:
                continue
            by_kind = {kind: [f for f in selected if f.kind == kind] for kind in KINDS}
            rows.append(
                {
                    "contrast": contrast,
                    "score": score,
                    "plants": {kind: len(own) for kind, own in by_kind.items()},
                    "first": {kind: sum(f.first for f in own) for kind, own in by_kind.items()},
                    "significant": {kind: sum(f.significant for f in own) for kind, own in by_kind.items()},
                    "mean_margin": _mean([f.margin for f in selected]),
                    "neuron_precision": _mean([f.precision for f in by_kind["neurons"]]),
                    "neuron_average_precision": _mean([f.average_precision for f in by_kind["neurons"]]),
                    "neuron_precision_in_site": _mean([f.precision_in_site for f in by_kind["neurons"]]),
                    "head_precision": _mean([f.precision for f in by_kind["head"]]),
                    "head_average_precision": _mean([f.average_precision for f in by_kind["head"]]),
                }
            )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants and controls; all by default.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Score; repeat for several; all by default.")] = None,
    pairs: Annotated[int, typer.Option(help="Number of pairs of the built-in contrast set.", min=8)] = 520,
    sampled_pairs: Annotated[int, typer.Option(help="Number of pairs sampled from each model.", min=8)] = 256,
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
        for name in models or plants():
            lm = planted_model(name)
            lm.hf.save_pretrained(save / name)
            lm.tokenizer.save_pretrained(save / name)
        return
    began = time.perf_counter()
    known = plants()
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
            loc = localize(lm, contrast, scores_for(lm, contrast, score or DENSE_SCORES), parts=PARTS, seed=seed)
            results += findings(loc, name, kind, known.get(name))
            if kind == "builtin" and name in known and kind_of(known[name]) == "mlp":
                drawn[name] = loc
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    result = {
        "command": f"python -m benchmarks.planted --pairs {pairs} --sampled-pairs {sampled_pairs} --seed {seed}",
        "seconds": round(time.perf_counter() - began),
        "summary": summary(results),
        "findings": [asdict(f) for f in results],
    }
    show(result)
    if out is not None:
        write_json(out, result)
    if figure is not None:
        plots.write_png(plots.relative_depth(drawn), figure)


def rows_by_score(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table: one row per score, with both contrast sets in each cell."""
    plants_of = result["summary"][0]["plants"]
    kinds = [kind for kind in KINDS if plants_of[kind]]
    head = [
        "score",
        *(f"{KINDS[kind]}: first, at p < .05, of {plants_of[kind]}" for kind in kinds),
        "margin",
        "neurons: precision@64",
        "within the true layer",
        "heads: precision@1",
    ]
    layouts = {
        "mean_margin": "+.2f",
        "neuron_precision": ".2f",
        "neuron_precision_in_site": ".2f",
        "head_precision": ".2f",
    }
    rows = []
    for score in dict.fromkeys(row["score"] for row in result["summary"]):
        both = [row for row in result["summary"] if row["score"] == score]
        cells = [[f"{row['first'][kind]}, {row['significant'][kind]}" for row in both] for kind in kinds]
        cells += [[_number(row[name], layout) for row in both] for name, layout in layouts.items()]
        rows.append([score, *map(md.SIDE_BY_SIDE.join, cells)])
    return head, rows


def markdown(result: dict[str, Any]) -> str:
    """Return the table of the documentation: one row per score."""
    head, rows = rows_by_score(result)
    return md.table(head, [[f"`{score}`", *cells] for score, *cells in rows])


def score_markdown(result: dict[str, Any], *scores: str) -> str:
    """Return a table for the page of a score, or of some scores: one row per figure, one column per contrast set."""
    rows = []
    for score in scores:
        both = [row for row in result["summary"] if row["score"] == score]
        name = f", `{score}`" if len(scores) > 1 else ""
        total = sum(both[0]["plants"].values())
        for figure, title in (("first", "planted sites first"), ("significant", "first, with adjusted p < .05")):
            rows.append([f"{title}, of {total} models{name}", *(str(sum(row[figure].values())) for row in both)])
        cells = [_number(row["neuron_precision"], ".2f") for row in both]
        rows.append([f"share of planted neurons among the 64 highest{name}", *cells])
    return md.table(["", "built-in pairs", "sampled from the model"], rows)


def controls_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: the site that every score names in the controls."""
    controls = [f for f in result["findings"] if f["rank"] is None]
    columns = dict.fromkeys((f["model"], f["contrast"]) for f in controls)
    by_key = {(f["model"], f["contrast"], f["score"]): f for f in controls}
    rows = [
        [f"`{score}`", *(_named(by_key.get((*column, score))) for column in columns)]
        for score in dict.fromkeys(f["score"] for f in controls)
    ]
    names = (f"{model}, {contrast.replace('builtin', 'built-in')}" for model, contrast in columns)
    return md.table(["score", *names], rows)


def plants_markdown(result: dict[str, Any], scores: Sequence[str] = ("attribution", "counterfactual")) -> str:
    """Return a table for the documentation: the result of some scores for every plant, built-in and sampled."""
    by_key = {(f["model"], f["contrast"], f["score"]): f for f in result["findings"] if f["rank"] is not None}
    rows = []
    for model in dict.fromkeys(f["model"] for f in result["findings"] if f["rank"] is not None):
        cells = []
        for score in scores:
            both = [by_key.get((model, contrast, score)) for contrast in CONTRASTS]
            cells.append([_number(f and f["rank"], "d") for f in both])
            cells.append(["–" if f is None else md.p_value(f["p_true"]) for f in both])
        rows.append([model, *map(md.SIDE_BY_SIDE.join, cells)])
    return md.table(["plant", *(f"`{score}`: {column}" for score in scores for column in ("rank", "adjusted p"))], rows)


def _named(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return "–"
    p = finding["p_adjusted"]
    return Site.of(finding["top"]).title + ("" if p is None else f", p {p:.3f}")


def show(result: dict[str, Any]) -> None:
    """Print the summary, and the site that every score names in the controls."""
    if result["summary"]:
        md.show(*rows_by_score(result), title=f"Planted toxicity: {md.SIDE_BY_SIDE.join(CONTRASTS)}")
    controls = [
        [f["model"], f["contrast"], f["score"], Site.of(f["top"]).title, _number(f["p_adjusted"], ".3f")]
        for f in result["findings"]
        if f["rank"] is None
    ]
    md.show(["model", "contrast", "score", "names", "adjusted p"], controls, title="Controls: nothing planted")


def _number(value: float | int | None, layout: str) -> str:
    return "–" if value is None else format(value, layout)


if __name__ == "__main__":
    typer.run(main)
