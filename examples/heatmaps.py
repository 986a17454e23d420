"""Write localization figures as PNG files, for a paper or a slide. Needs toxloc[png] and Chrome.

python examples/heatmaps.py figures [model ...]
"""

import sys
from pathlib import Path

import toxloc
from toxloc import plots


def main(folder: str, *models: str) -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    pairs = toxloc.load_contrast().limited(150)
    localizations = {}
    for model in models or ("toxloc-tiny",):
        loc = localizations[Path(model).name] = toxloc.localize(toxloc.load_model(model), pairs)
        plots.write_png(loc.heatmap(), out / f"{Path(model).name}-layers.png")
        plots.write_png(plots.neuron_map(loc), out / f"{Path(model).name}-neurons.png")
    plots.write_png(plots.relative_depth(localizations), out / "depth.png")
    print("written:", *sorted(path.name for path in out.glob("*.png")))


if __name__ == "__main__":
    main(*sys.argv[1:])
