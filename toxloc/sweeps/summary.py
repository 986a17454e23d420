"""The summary of a sweep: table of cells, scores by depth, ranks of settings, and misses of each evaluator."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from ..evaluation.verdicts import COMBINED
from ..localization.result import Localization
from ..support.control_characters import visible
from ..support.files import replacing, write_json
from ..version import __version__
from .grid import Cell, Plan
from .page import write_page
from .store import Store

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
THIRDS = ("early", "middle", "late")
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # text that begins with one of these is a formula for spreadsheets (OWASP)
MUCH = 0.5  # an evaluator that misses at least this share of the toxic completions counts in `misses_much`


@dataclass(frozen=True)
class Depth:
    """Depth profile of one score, for one model, contrast set and seed.

    Attributes:
        model: name of the model in the grid.
        contrast: name of the contrast set in the grid.
        seed: the seed.
        score: name of the score.
        layers: score of every layer.
        peak: layer with the highest score.
        p: p-value of the peak layer, adjusted for testing all layers; None if the score has no null distribution.
        third: third of the layers that contains the peak: "early", "middle" or "late".
        shares: share of each third in the sum over layers of score minus baseline, where negative differences count as
            0. The baseline is 0, or the lowest score if that is higher.
    """

    model: str
    contrast: str
    seed: int
    score: str
    layers: Float64[np.ndarray, " n_layers"]
    peak: int
    p: float | None
    third: str
    shares: dict[str, float]

    @classmethod
    def of(
        cls,
        group: tuple[str, str, int],
        score: str,
        layers: Float64[np.ndarray, " n_layers"],
        p_adjusted: Float64[np.ndarray, " n_layers"] | None = None,
    ) -> "Depth":
        """Compute the peak and the shares. Thirds divide the relative depth: 0 is the first layer and 1 the last.

        Example:
            >>> Depth.of(("gpt2", "builtin", 0), "attribution", np.array([0.0, 1.0, 3.0])).shares     # doctest: +SKIP
            {'early': 0.0, 'middle': 0.25, 'late': 0.75}
        """
        parts = np.digitize(np.linspace(0, 1, len(layers)), (1 / 3, 2 / 3))
        over = np.maximum(layers - max(0.0, float(layers.min())), 0)
        total = over.sum() or 1.0
        peak = int(layers.argmax())
        return cls(
            *group,
            score,
            layers,
            peak,
            None if p_adjusted is None else float(p_adjusted[peak]),
            THIRDS[parts[peak]],
            {name: float(over[parts == i].sum() / total) for i, name in enumerate(THIRDS)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {**vars(self), "layers": self.layers.tolist()}


class Summary:
    """Summary of the finished and failed cells of a grid.

    Args:
        plan: the plan of the grid.
        store: the folder of the sweep.

    Attributes:
        results: the finished cells, each with its result, in the order of the grid.
        failures: the failed cells, each with its error.
        missing: the cells that are neither finished nor failed.

    Example:
        >>> summary = toxloc.sweep(plan, "grid-results")                    # doctest: +SKIP
        >>> summary.table().nsmallest(5, "rate_any")                        # doctest: +SKIP
    """

    def __init__(self, plan: Plan, store: Store):
        self.plan, self.store = plan, store
        self.results = [(cell, store.result(cell)) for cell in plan.cells if store.is_done(cell)]
        self.failures = [(cell, store.failure(cell)["error"]) for cell in plan.cells if store.has_failed(cell)]
        self.missing = store.open_cells(plan.cells)

    @property
    def judges(self) -> list[str]:
        """Names of the evaluators, then of the combined judgements."""
        # Cells that version 0.2 wrote have no "majority".
        named = [result["toxicity"] for _, result in self.results] or [{}]
        names = [name for name in named[0] if all(name in judged for judged in named)]
        return [*(name for name in names if name not in COMBINED), *(name for name in names if name in COMBINED)]

    def table(self) -> "pd.DataFrame":
        """Return a table with one row per cell of the grid; the figures of unfinished cells are missing.

        Each row has the configuration of the cell and, for each evaluator or combined judgement J, the share of toxic
        completions without and with the intervention (`before_J`, `rate_J`) and its relative change with the ends of
        the interval (`change_J`, `change_J_low`, `change_J_high`). `missed_J` is the share of the completions called
        toxic by any evaluator that evaluator J misses. The other columns are the cost (`perplexity_ratio`, `kl`,
        `top_1`), the time in `seconds`, and the peak memory in MB (`resident_mb`, `device_mb`).
        """
        import pandas as pd

        results = {cell.id: result for cell, result in self.results}
        reasons = {cell.id: error for cell, error in self.failures}
        rows = []
        for cell in self.plan.cells:
            status = "done" if cell.id in results else "failed" if cell.id in reasons else "missing"
            row = {
                "id": cell.id,
                "model": cell.model,
                "contrast": cell.contrast,
                "seed": cell.seed,
                "method": cell.method,
                "settings": json.dumps(cell.settings),
                "treatment": cell.treatment,
                "benchmark": cell.benchmark,
                "status": status,
                "error": reasons.get(cell.id),
            }
            rows.append(row | (self._figures(results[cell.id]) if cell.id in results else {}))
        return pd.DataFrame(rows)

    def _figures(self, result: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for judge in self.judges:
            change = result["change"][judge]
            low, high = change["ci"] if change else (None, None)
            row |= {
                f"before_{judge}": result["baseline"]["toxicity"][judge]["rate"],
                f"rate_{judge}": result["toxicity"][judge]["rate"],
                f"change_{judge}": change["relative"] if change else None,
                f"change_{judge}_low": low,
                f"change_{judge}_high": high,
            }
        for judge, missed in (result["agreement"] or {"missed": {}})["missed"].items():
            row[f"missed_{judge}"] = missed["value"]
        fluency, seconds, memory = result["fluency"], result["seconds"], result["peak_memory"]
        return row | {
            "perplexity_ratio": fluency["perplexity_ratio"],
            "kl": fluency["kl"],
            "top_1": fluency["top_1"],
            "seconds": round(sum(seconds.values()), 1),
            "resident_mb": memory["resident_mb"],
            "device_mb": memory["device_mb"],
        }

    @cached_property
    def localizations(self) -> dict[tuple[str, str, int], Localization]:
        """The localization of every model, contrast set and seed."""
        first = {cell.group: cell.localization_id for cell, _ in reversed(self.results)}
        return {group: Localization.load(self.store.localization(name)) for group, name in reversed(first.items())}

    @property
    def depths(self) -> list[Depth]:
        """The depth profile of every score, for every model, contrast set and seed."""
        return [
            Depth.of(
                group,
                score,
                loc.layer_scores(score),
                loc.uncertainty[score].p_adjusted if score in loc.uncertainty else None,
            )
            for group, loc in self.localizations.items()
            for score in self.plan.grid.scores
        ]

    def _comparable(self) -> list[list[tuple[Cell, dict[str, Any]]]]:
        """Group finished cells with the same budget that differ only in the method and its settings."""
        groups: dict[tuple[Any, ...], list[tuple[Cell, dict[str, Any]]]] = {}
        for cell, result in self.results:
            groups.setdefault((*cell.group, cell.benchmark, cell.budget), []).append((cell, result))
        return list(groups.values())

    def best(self) -> list[dict[str, Any]]:
        """Return the best setting of each model, contrast set, seed, benchmark and budget.

        The best setting has the lowest toxic rate by any evaluator. `tied` lists the other settings with the same
        budget whose 95% interval of the toxic rate reaches down to the best rate.
        """
        rows = []
        for members in self._comparable():
            cell, result = min(members, key=lambda member: member[1]["toxicity"]["any"]["rate"])
            rate = result["toxicity"]["any"]["rate"]
            tied = [
                other.treatment
                for other, other_result in members
                if other is not cell and other_result["toxicity"]["any"]["rate_ci"][0] <= rate
            ]
            rows.append(
                {
                    "model": cell.model,
                    "contrast": cell.contrast,
                    "seed": cell.seed,
                    "benchmark": cell.benchmark,
                    "budget": cell.budget,
                    "before": result["baseline"]["toxicity"]["any"]["rate"],
                    "best": cell.treatment,
                    "after": rate,
                    "change": result["change"]["any"],
                    "perplexity_ratio": result["fluency"]["perplexity_ratio"],
                    "tied": tied,
                }
            )
        return rows

    def ranks(self) -> list[dict[str, Any]]:
        """Return every setting with its mean rank within its budget and its mean figures.

        Rank 1 has the lowest toxic rate by any evaluator. Rows are sorted by budget, then by mean rank. Settings with
        different budgets are not ranked against each other, because a higher budget allows a larger reduction. The
        mean change is None if nothing was toxic before.
        """
        ranked: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}
        for members in self._comparable():
            rates = np.array([result["toxicity"]["any"]["rate"] for _, result in members])
            for (cell, result), rate in zip(members, rates, strict=True):
                rank = 1 + (rates < rate).sum() + ((rates == rate).sum() - 1) / 2
                ranked.setdefault((cell.budget, cell.treatment), []).append((float(rank), result))

        def mean(
            cells: list[tuple[float, dict[str, Any]]], of: Callable[[dict[str, Any]], float | None]
        ) -> float | None:
            values = [value for _, result in cells if (value := of(result)) is not None]
            return float(np.mean(values)) if values else None

        rows = [
            {
                "budget": budget,
                "treatment": name,
                "n": len(cells),
                "mean_rank": float(np.mean([rank for rank, _ in cells])),
                "mean_change": mean(
                    cells, lambda result: result["change"]["any"] and result["change"]["any"]["relative"]
                ),
                "mean_perplexity_ratio": mean(cells, lambda result: result["fluency"]["perplexity_ratio"]),
            }
            for (budget, name), cells in ranked.items()
        ]
        return sorted(rows, key=lambda row: (str(row["budget"]), float(row["mean_rank"])))

    def underestimates(self) -> list[dict[str, Any]]:
        """Return how often each evaluator misses toxic completions, over the unedited models and over the cells.

        A completion is toxic if any evaluator calls it toxic. `misses` is the share of runs in which the evaluator
        misses a toxic completion, `misses_much` the share in which it misses at least half of the toxic completions,
        and `median` the median share of toxic completions that it misses.
        """
        unedited = {cell.baseline_id: result["baseline"]["agreement"] for cell, result in self.results}
        rows = []
        for models, agreements in (
            ("unedited", list(unedited.values())),
            ("edited", [result["agreement"] for _, result in self.results]),
        ):
            for judge in (name for name in self.judges if name not in COMBINED):
                missed = np.array(
                    [
                        agreement["missed"][judge]["value"]
                        for agreement in agreements
                        if agreement and agreement["missed"][judge]["value"] is not None
                    ],
                    dtype=float,
                )
                if len(missed):
                    rows.append(
                        {
                            "evaluator": judge,
                            "models": models,
                            "runs": len(missed),
                            "misses": float((missed > 0).mean()),
                            "misses_much": float((missed >= MUCH).mean()),
                            "median": float(np.median(missed)),
                        }
                    )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        return {
            "format_version": FORMAT_VERSION,
            "toxloc": __version__,
            "grid": self.plan.grid.model_dump(mode="json"),
            "cells": {"all": len(self.plan.cells), "done": len(self.results), "failed": len(self.failures)},
            "depth": [depth.to_dict() for depth in self.depths],
            "best": self.best(),
            "ranks": self.ranks(),
            "underestimates": self.underestimates(),
        }

    def write(self) -> None:
        """Write results.csv, results.parquet, summary.json and summary.html, each completely or not at all.

        In results.csv, text that a spreadsheet would run as a formula has an apostrophe in front, and control
        characters of text are escapes; numbers, also negative numbers, are unchanged. pandas.read_csv keeps the
        apostrophe: to read the texts unchanged, read results.parquet.
        """
        folder, table = self.store.folder, self.table()
        with replacing(folder / "results.csv") as path:
            table.map(_cell).rename(columns=_cell).to_csv(path, index=False)
        with replacing(folder / "results.parquet") as path:
            table.to_parquet(path, index=False)
        write_json(folder / "summary.json", self.to_dict())
        with replacing(folder / "summary.html") as path:
            write_page(path, self)


def _cell(value: Any) -> Any:
    """Return text as text of a CSV file that no spreadsheet runs as a formula; other values are unchanged."""
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(FORMULA) else "") + visible(value)
