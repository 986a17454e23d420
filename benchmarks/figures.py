"""Draw the figures of the documentation that show where toxicity is in one or more models.

    python -m benchmarks.figures docs/assets
    python -m benchmarks.figures docs/assets --model toxloc-tiny --model SmolLM2-135M-Instruct.Q4_1.gguf

Localizes the MLPs and attentions of the first model with every score on the built-in contrast set, and writes
`heatmap.png`, `depth.png`, `neurons.png` and `tokens.png`, which shows one toxic text, masked. With several models it
also writes `models.png`, which compares the models by relative depth. Needs `toxloc[png]`. Takes about a minute on two
cores for toxloc-tiny.
"""

from pathlib import Path
from typing import Annotated, get_args

import typer

from toxloc import collect_contrast, load_contrast, load_model, localize, plots, token_view
from toxloc.localization.result import Localization
from toxloc.localization.score_names import ScoreName
from toxloc.localization.score_table import SCORES

WIDTH, SCALE = 800, 1.5
SCORE: ScoreName = "attribution"  # score of the figures that show a single score


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the PNG files.")],
    model: Annotated[list[str], typer.Option(help="Model, as in load_model; repeat for several.")] = [  # noqa: B006
        "toxloc-tiny"
    ],
    pairs: Annotated[int, typer.Option(help="Number of pairs of the built-in contrast set.", min=8)] = 520,
    text: Annotated[int, typer.Option(help="Index of the toxic text whose tokens are shown.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
) -> None:
    """Localize the models and draw the figures."""
    contrast = load_contrast().limited(pairs, seed)
    locs: dict[str, Localization] = {}
    for name in model:
        lm = load_model(name)
        first = not locs
        # The layer score of `combined` equals that of attribution.
        every = tuple(name for name in get_args(ScoreName) if name != "combined" and SCORES[name].only is None)
        scores = every if first else (SCORE,)
        sites = lm.sites("mlp", "attention")
        statistics = collect_contrast(lm, contrast, sites=sites, curvature=first, peaks=first, differences=first)
        locs[lm.name] = loc = localize(lm, contrast, scores, statistics=statistics, seed=seed)
        if first:
            shown = load_contrast().toxic[text]
            for stem, figure in {
                "heatmap": loc.heatmap(),
                "depth": plots.toxicity_by_depth(loc, SCORE),
                "neurons": plots.neuron_map(loc, SCORE),
                "tokens": token_view(lm, shown, statistics).heatmap(),
            }.items():
                plots.write_png(figure, out / f"{stem}.png", width=WIDTH, scale=SCALE)
    if len(locs) > 1:
        plots.write_png(plots.relative_depth(locs, SCORE), out / "models.png", width=WIDTH, scale=SCALE)


if __name__ == "__main__":
    typer.run(main)
