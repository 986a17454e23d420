"""Which sites of real models stand out, and whether removing them on held-out text agrees.

    python -m benchmarks.sites paradetox.tsv --out benchmarks/results/sites.json

Attribution and counterfactual attribution score every MLP and attention of a model on pairs that share a prefix: on the
built-in set, and on pairs of ParaDetox (s-nlp/paradetox, OpenRAIL++; the file is not part of the project). A fifth of
the pairs is held out; sites with an adjusted p below .05 are removed there one by one. With `--out`, the results of
other models and sets stay in the file.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import markdown as md
from toxloc import ContrastSet, KnockoutTest, Localization, confirm, load_contrast, load_model, localize
from toxloc.localization.first_difference import first_differences
from toxloc.localization.result import HEADLINES
from toxloc.localization.score_names import ScoreName
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Part, Site
from toxloc.support.files import read_json, write_json

MODELS = ("smollm2-135m", "gemma3-270m", "toxloc-tiny")
PARTS: tuple[Part, ...] = ("mlp", "attention")
SHOWN = 3  # sites of each sign
HELD_OUT, MAX_HELD_OUT = 0.2, 60
THIRDS = ("early", "middle", "late")


def comparable(lm: LoadedModel, pairs: ContrastSet, count: int) -> ContrastSet:
    """Return the first `count` pairs whose texts share a prefix and then differ."""
    usable = [difference.pair for difference in first_differences(lm, pairs).usable][:count]
    toxic, neutral = ([side[i] for i in usable] for side in (pairs.toxic, pairs.neutral))
    return ContrastSet(toxic, neutral, pairs.name, paired=True)


def sites_of(lm: LoadedModel, pairs: ContrastSet, seed: int = 0) -> dict[str, Any]:
    """Score all sites on most of the pairs, and remove those above chance on the others."""
    began = time.perf_counter()
    fit, held_out = pairs.split(1 - HELD_OUT, seed)
    loc = localize(lm, fit, HEADLINES, parts=PARTS, seed=seed)
    test = KnockoutTest(lm, held_out.limited(MAX_HELD_OUT, seed), seed=seed)
    return {
        "n_pairs": len(fit.toxic),
        "n_held_out": min(MAX_HELD_OUT, len(held_out.toxic)),
        "n_layers": lm.n_layers,
        "scores": {
            score: {"sites": _rows(loc, score), "headline": confirm(test, loc, score).to_dict()} for score in HEADLINES
        },
        "seconds": round(time.perf_counter() - began),
    }


def _rows(loc: Localization, score: ScoreName) -> list[dict[str, Any]]:
    rows = []
    for part in loc.parts:
        uncertainty = loc.part_uncertainty(score, part)
        assert uncertainty is not None
        for i, site in enumerate(loc.sites(part)):
            figures = {name: float(getattr(uncertainty, name)[i]) for name in ("low", "high", "z", "p_adjusted")}
            rows.append({"site": str(site), "value": float(loc.layer_scores(score, part)[i])} | figures)
    return rows


def third_of(site: Site, n_layers: int) -> str:
    """Return whether a site lies in the early, middle or late third of the layers.

    Example:
        >>> third_of(Site(29), 30), third_of(Site(0), 30)
        ('late', 'early')
    """
    return THIRDS[3 * site.layer // n_layers]


def main(
    paradetox: Annotated[Path, typer.Argument(help="File of ParaDetox.", exists=True, dir_okay=False)],
    model: Annotated[list[str] | None, typer.Option(help="Model; repeat for several; all three by default.")] = None,
    pairs: Annotated[int, typer.Option(help="Largest number of pairs.", min=20)] = 1500,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)] = None,
) -> None:
    """Score the MLPs and attentions of real models, and confirm those above chance."""
    result: dict[str, Any] = {"models": {}}
    if out is not None and out.exists():
        result = read_json(out, "result of a benchmark")
    result["command"] = f"python -m benchmarks.sites paradetox.tsv --pairs {pairs} --seed {seed}"
    for name in model or MODELS:
        lm = load_model(name)
        sets = {"built-in": load_contrast(), "ParaDetox": load_contrast(str(paradetox))}
        for title, contrast in sets.items():
            result["models"].setdefault(name, {})[title] = sites_of(lm, comparable(lm, contrast, pairs), seed)
            if out is not None:
                write_json(out, result)
    md.show(*_table(result), title="Sites of real models")


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table for the documentation: one row per model, contrast set and score."""
    return md.table(*_table(result))


def _table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["model", "set, pairs", "score", "highest z", "lowest z", "headline"]
    rows = []
    for name, sets in result["models"].items():
        for title, scored in sets.items():
            for score, of_score in scored["scores"].items():
                ranked = sorted(of_score["sites"], key=lambda row: -row["z"])
                cells = (_shown(some, scored["n_layers"]) for some in (ranked[:SHOWN], ranked[: -SHOWN - 1 : -1]))
                of_set = name, f"{title}, {scored['n_pairs']}", f"`{score}`"
                rows.append([*of_set, *cells, _named(of_score["headline"])])
    return head, rows


def _shown(rows: Sequence[Mapping[str, Any]], n_layers: int) -> str:
    texts = []
    for row in rows:
        site = Site.of(row["site"])
        texts.append(f"{site.title} ({third_of(site, n_layers)}): {row['z']:+.1f}, p {md.p_value(row['p_adjusted'])}")
    return "; ".join(texts)


def _named(headline: Mapping[str, Any]) -> str:
    """Return the sites that a headline names, with the effect of removing the first, or why it names none."""
    if headline["stands_out"]:
        named = "; ".join(Site.of(name).title for name in (headline["site"], *headline["others"]))
        return f"{named}: {_effect(headline['removal'])}"
    if headline["removal"] is None:
        return "none"
    why = "breaks the model" if headline["removal"]["breaks_model"] else _effect(headline["removal"])
    return f"none; {Site.of(headline['site']).title} not confirmed: {why}"


def _effect(removal: Mapping[str, Any]) -> str:
    low, high = removal["effect_ci"]
    return f"{removal['effect']:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    typer.run(main)
