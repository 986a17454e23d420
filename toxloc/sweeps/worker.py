"""What a worker of a sweep does: the cells of one model, contrast set and seed, one after another."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..errors import ToxlocError
from ..evaluation.change import paired_difference, relative_change
from ..evaluation.cost.fluency import Unedited
from ..evaluation.evaluate import evaluate
from ..evaluation.evaluators.registry import get_evaluators
from ..evaluation.result import Evaluation, Finished, load_evaluation
from ..interventions.base import Intervention
from ..interventions.evidence import Evidence
from ..interventions.loading import load_intervention
from ..interventions.registry import method_named, method_settings
from ..localization.localize import localize
from ..localization.scores import needs_of
from ..models.loading import load_model
from ..support.memory import PeakMemory
from .grid import Cell, Plan, grid_of
from .store import Store


def work(plan: Plan, cells: Sequence[Cell], store: Store) -> None:
    """Compute cells of one group in their order, and write each as it is finished; a cell that fails stops no other."""
    torch.set_float32_matmul_precision(plan.grid.precision)
    try:
        bench = _Bench(plan, cells[0], store)
    except Exception as error:
        for cell in cells:
            store.fail(cell, error)
        return
    for _, same_fit in groupby(cells, lambda cell: cell.fit_id):
        members = list(same_fit)
        for cell in members:
            try:
                store.finish(cell, bench.result(cell))
            except Exception as error:
                store.fail(cell, error)


class _Bench:
    """One model with what all cells of a group share: where toxicity lies, what the unedited model does."""

    def __init__(self, plan: Plan, first: Cell, store: Store):
        self.plan, self.store, grid = plan, store, plan.grid
        self.judges = get_evaluators([plan.located_evaluator(one) for one in grid.evaluators])
        self.lm = load_model(plan.located(first.model), device=grid.device, dtype=grid.dtype)
        self.pairs = plan.pairs(first.contrast, first.seed)
        # One pass over the texts gathers what all scores and methods of the grid need.
        needs = [method_named(method).needs(method_settings(method, **settings)) for method, settings in plan.variants]
        self.evidence = Evidence(self.lm, self.pairs, plan.neutral).expect(*needs_of(grid.scores).union(*needs))
        self._unedited: Unedited | None = None
        self._fitted: tuple[str, Intervention] | None = None

    def result(self, cell: Cell) -> dict[str, Any]:
        """Fit, judge and compare with the unedited model."""
        with PeakMemory() as peak:
            began = time.monotonic()
            self._localize(cell)
            before = self._baseline(cell)
            shared = time.monotonic()
            fitted = self._fit(cell)
            with_fit = time.monotonic()
            with fitted.applied(self.lm):
                found = self._judged(cell)
                cost = self._on_neutral_text().compare()
            judged = time.monotonic()
        return {
            "toxloc_model": {"name": self.lm.name, "fingerprint": self.lm.fingerprint, "n_layers": self.lm.n_layers},
            "n_prompts": len(found.prompts),
            "baseline": {key: before.figures[key] for key in ("toxicity", "agreement", "wording")},
            "toxicity": {name: one.to_dict() for name, one in found.toxicity.items()},
            "difference": {
                name: paired_difference(before.judgements[name], one, cell.seed).to_dict()
                for name, one in found.judgements.items()
            },
            "change": {
                name: change.to_dict() if (change := relative_change(before.judgements[name], one, cell.seed)) else None
                for name, one in found.judgements.items()
            },
            "agreement": found.agreement.to_dict() if found.agreement else None,
            "wording": found.wording.to_dict(),
            "fluency": cost.to_dict(),
            "fit": {name: value for name, value in fitted.record.items() if isinstance(value, int | float | str)},
            "seconds": {
                "shared": round(shared - began, 1),
                "fit": round(with_fit - shared, 1),
                "judge": round(judged - with_fit, 1),
            },
            "peak_memory": peak.to_dict(),
        }

    def _judged(self, cell: Cell) -> Evaluation:
        decoding = self.plan.grid.decoding.to_dict()
        return evaluate(
            self.lm, self.plan.prompts[cell.benchmark], self.judges, **decoding, seed=cell.seed, fluency=False
        )

    def _on_neutral_text(self) -> Unedited:
        if self._unedited is None:
            with self.lm.unedited():
                self._unedited = Unedited(self.lm, self.plan.neutral.check)
        return self._unedited

    def _localize(self, cell: Cell) -> None:
        target = self.store.localization(cell.localization_id)
        if target.is_dir():
            return
        scores = self.plan.grid.scores
        loc = localize(
            self.lm, self.pairs, scores, statistics=self.evidence.statistics(needs_of(scores)), seed=cell.seed
        )
        loc.save(target)

    def _baseline(self, cell: Cell) -> Finished:
        target = self.store.baseline(cell)
        if not target.is_dir():
            _keep(lambda: self._judged(cell).save(target), target)
        return load_evaluation(target)

    def _fit(self, cell: Cell) -> Intervention:
        if self._fitted is None or self._fitted[0] != cell.fit_id:
            target = self.store.intervention(cell)
            if target.is_dir():
                fitted = load_intervention(target)
            else:
                fitted = self._fit_anew(cell)
                _keep(lambda: fitted.save(target), target)
            self._fitted = cell.fit_id, fitted
        return self._fitted[1]

    def _fit_anew(self, cell: Cell) -> Intervention:
        settings = method_settings(cell.method, **{"seed": cell.seed, **cell.settings})
        return method_named(cell.method).fit(self.lm, self.pairs, settings, evidence=self.evidence)


def _keep(save: Callable[[], None], target: Path) -> None:
    """Save a folder; another worker may have saved the same meanwhile, which is as good."""
    try:
        save()
    except (ToxlocError, OSError):
        if not target.is_dir():
            raise


def _watch_parent() -> None:
    """End with the process that started this one, whose end of the pipe closes then."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(task: str) -> None:
    """Do the work that a file describes; see `toxloc.sweeps.runner`."""
    with open(task, encoding="utf-8") as stream:
        told = json.load(stream)
    threading.Thread(target=_watch_parent, daemon=True).start()
    run_told(told)


def run_told(told: dict[str, Any]) -> None:
    """Do the work that a mapping describes: it can be sent to another machine that sees the same files."""
    torch.set_num_threads(told["threads"])
    plan = Plan(grid_of(told["grid"]), told["root"], told["name"], checked=True)
    work(plan, [Cell(**cell) for cell in told["cells"]], Store(told["folder"]))


if __name__ == "__main__":
    main(sys.argv[1])
