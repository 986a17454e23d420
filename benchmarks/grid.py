"""Tables of the results of the grid with ninety cells, `examples/offline-grid.yaml`; run it with `toxloc sweep`."""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.markdown import table
from toxloc.support.names import short_name

DEPTH_SCORES = {"activation": "activation contrast", "gradient_norm": "gradient norm", "attribution": "attribution"}


def rates(results: Path, benchmark: str) -> str:
    """Return a table of toxic rates by any evaluator: a row per setting, a column per model, lowest rate in bold."""
    cells = _cells(results).query("benchmark == @benchmark")
    edited = _pivot(cells, "rate_any")
    unedited = cells.groupby("model", sort=False)["before_any"].first()
    rows = [["unedited", *(f"{unedited[model]:.1%}" for model in edited)]]
    for setting, values in edited.iterrows():
        rows.append(
            [
                str(setting),
                *(
                    f"**{rate:.1%}**" if rate == edited[model].min() else f"{rate:.1%}"
                    for model, rate in values.items()
                ),
            ]
        )
    return table(["setting", *edited], rows, numbers=True)


def prices(results: Path) -> str:
    """Return a table of the rise of perplexity on text that was used neither for statistics nor for tuning."""
    edited = _pivot(_cells(results).drop_duplicates(["treatment", "model"]), "perplexity_ratio")
    return table(
        ["setting", *edited],
        [[str(setting), *(f"{ratio - 1:+.1%}" for ratio in values)] for setting, values in edited.iterrows()],
        numbers=True,
    )


def depths(summary: dict[str, Any]) -> str:
    """Return a table of the peak layer of every score in every model, with its adjusted p-value."""
    models = dict.fromkeys(entry["model"] for entry in summary["depth"])
    known = {(entry["model"], entry["score"]): entry for entry in summary["depth"]}
    rows = [
        [
            short_name(model),
            str(len(known[model, "activation"]["layers"])),
            *(f"layer {known[model, score]['peak']}, p {known[model, score]['p']:.2g}" for score in DEPTH_SCORES),
        ]
        for model in models
    ]
    return table(["model", "layers", *DEPTH_SCORES.values()], rows)


def _cells(results: Path) -> pd.DataFrame:
    cells = pd.read_csv(results)
    return cells.assign(model=cells["model"].map(short_name))


def _pivot(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    wide = cells.pivot(index="treatment", columns="model", values=column)
    return wide.loc[cells["treatment"].unique(), cells["model"].unique()]
