"""Test whether removing the parts that a score ranks highest removes toxicity, on texts that no score has seen.

    python -m benchmarks.causal                # toxloc-tiny; --out causal.json saves it, --figures DIR draws it
    python -m benchmarks.causal --model SmolLM2-135M-Instruct.Q4_1.gguf --pairs 150 --texts 40

Every score localizes on one part of the built-in contrast set. On another part, every layer and a sample of single
neurons are removed one at a time, and each score is rank-correlated with the effect: the rise of the NLL of toxic text
minus the rise of the NLL of neutral text. Curves compare groups of neurons of increasing size, in the order of a score,
with random groups of neurons of the same layers and similar activation sizes.
"""

import time
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from benchmarks.figures import SCALE, WIDTH
from toxloc import KnockoutTest, causal_proof, knockout_curve, load_contrast, load_model, load_neutral, localize, plots
from toxloc.causal.curve import KnockoutCurve
from toxloc.causal.knockout import Knockout
from toxloc.causal.proof import CausalProof
from toxloc.cli.output import interval
from toxloc.localization.score_names import ScoreName
from toxloc.localization.score_table import SCORES
from toxloc.support.files import write_json


def main(
    model: Annotated[str, typer.Option(help="Model, as in load_model.")] = "toxloc-tiny",
    pairs: Annotated[int, typer.Option(help="Number of pairs to localize with.", min=8)] = 300,
    texts: Annotated[int, typer.Option(help="Number of other pairs, to measure effects on.", min=8)] = 100,
    neurons: Annotated[int, typer.Option(help="Number of single neurons to remove.", min=4)] = 200,
    curve_score: Annotated[
        list[str], typer.Option(help="Score that orders the neurons of a curve; repeat for several.")
    ] = [  # noqa: B006
        "attribution",
        "activation",
    ],
    device: Annotated[str | None, typer.Option(help="Device, as in load_model.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for PNG files. Needs toxloc[png].")] = None,
) -> None:
    """Localize, remove parts, correlate scores with effects, and print and save the results."""
    began = time.perf_counter()
    lm = load_model(model, device=device)
    everything = load_contrast()
    fit, rest = everything.split(pairs / len(everything.toxic), seed)
    scores = tuple(name for name in get_args(ScoreName) if SCORES[name].only is None)
    loc = localize(lm, fit, scores, seed=seed)
    test = KnockoutTest(lm, rest.limited(texts, seed), seed=seed)
    proof = causal_proof(test, loc, n_neurons=neurons, seed=seed)
    priced = KnockoutTest(lm, rest.limited(texts, seed), neutral=load_neutral(limit=120).tune, seed=seed)
    few = max(1, loc.activation_size.size // 1024)
    curves = [
        knockout_curve(priced, loc, score, [few * 2**i for i in range(6)], controls=2, seed=seed)
        for score in curve_score
    ]
    show(lm.name, proof, curves)
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.causal --model {Path(model).name} --pairs {pairs} --texts {texts} "
        f"--neurons {neurons} {' '.join(f'--curve-score {s}' for s in curve_score)} --seed {seed}",
        "model": lm.name,
        "seconds": round(time.perf_counter() - began),
        "layer_scores": {name: loc.layer_scores(name).tolist() for name in loc.scores},
        "proof": proof.to_dict(),
        "curves": [curve.to_dict() for curve in curves],
    }
    if out is not None:
        write_json(out, result)
    if figures is not None:
        plots.write_png(plots.knockout_layers(proof), figures / "knockout-layers.png", width=WIDTH, scale=SCALE)
        plots.write_png(plots.causal_correlations(proof), figures / "correlations.png", width=WIDTH, scale=SCALE)
        plots.write_png(plots.removal_curve(curves[0]), figures / "knockout-curve.png", width=WIDTH, scale=SCALE)
    print(f"{result['seconds']} s")


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a table for the documentation: rank correlation of every score with the effects, in several models."""
    columns = [
        (f"{name}, {len(result['proof'][parts])} {parts}", result["proof"]["correlations"], parts)
        for name, result in results.items()
        for parts in ("layers", "neurons")
    ]
    scores = dict.fromkeys(c["score"] for _, correlations, _ in columns for c in correlations)
    return md.table(
        ["score", *(head for head, _, _ in columns)],
        [
            [
                f"`{score}`",
                *(
                    interval(c["spearman"], c["ci"], "+.2f")
                    for _, correlations, parts in columns
                    for c in correlations
                    if (c["score"], c["parts"]) == (score, parts)
                ),
            ]
            for score in scores
        ],
    )


def curves_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: the effects of removing the highest-scoring neurons and random neurons."""
    rows = []
    for curve in result["curves"]:
        for count, k, controls in zip(curve["counts"], curve["ordered"], curve["controls"], strict=True):
            rows.append(
                [
                    f"`{curve['score']}`",
                    str(count),
                    interval(k["effect"], k["effect_ci"], "+.3f"),
                    f"{k['perplexity_ratio']:.2f}",
                    md.SIDE_BY_SIDE.join(f"{c['effect']:+.3f}" for c in controls),
                    md.SIDE_BY_SIDE.join(f"{c['perplexity_ratio']:.2f}" for c in controls),
                ]
            )
    return md.table(
        [
            "order",
            "neurons removed",
            "effect, nats per token",
            "× perplexity",
            "random neurons: effect",
            "× perplexity",
        ],
        rows,
    )


def show(name: str, proof: CausalProof, curves: list[KnockoutCurve]) -> None:
    """Print the correlations, the effects of layers and the curves."""
    console = Console()
    table = Table("score", "over layers", "over single neurons", title=f"{name}: Spearman's ρ of score and effect")
    for score in dict.fromkeys(c.score for c in proof.correlations):
        by_parts = {c.parts: c for c in proof.correlations if c.score == score}
        table.add_row(
            score,
            *(f"{c.spearman:+.2f} [{c.ci[0]:+.2f}, {c.ci[1]:+.2f}]" for c in (by_parts["layers"], by_parts["neurons"])),
        )
    console.print(table)
    layers = Table("layer", "effect", "95%", "toxic rise", "neutral rise", title="Removing a layer, nats per token")
    for k in proof.layers:
        layers.add_row(
            str(k.layers[0]),
            f"{k.effect:+.3f}",
            f"[{k.effect_ci[0]:+.3f}, {k.effect_ci[1]:+.3f}]",
            f"{k.toxic_rise:+.3f}",
            f"{k.neutral_rise:+.3f}",
        )
    console.print(layers)
    for curve in curves:
        points = Table(
            "neurons",
            "effect",
            "perplexity",
            "random neurons: effect",
            "random neurons: perplexity",
            title=f"Removing neurons by {curve.score}",
        )
        for count, k, controls in zip(curve.counts, curve.ordered, curve.controls, strict=True):
            points.add_row(
                str(count),
                f"{k.effect:+.4f} [{k.effect_ci[0]:+.4f}, {k.effect_ci[1]:+.4f}]",
                _ratio(k),
                ", ".join(f"{c.effect:+.4f}" for c in controls),
                ", ".join(map(_ratio, controls)),
            )
        console.print(points)


def _ratio(k: Knockout) -> str:
    return "–" if k.perplexity_ratio is None else f"×{k.perplexity_ratio:.3f}"


if __name__ == "__main__":
    typer.run(main)
