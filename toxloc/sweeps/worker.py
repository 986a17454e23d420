"""The worker of a sweep: compute the cells of one model, contrast set and seed, one after another."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

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
from ..localization.score_table import needs_of
from ..models.loading import load_model
from ..support.files import reserved
from ..support.memory import PeakMemory
from .grid import Cell, Plan, grid_of
from .store import Store


def work(plan: Plan, cells: Sequence[Cell], store: Store) -> None:
    """Compute the cells of one group in order and write each when it is finished; continue after a cell that fails."""
    torch.set_float32_matmul_precision(plan.grid.precision)
    try:
        group = _Group(plan, cells[0], store)
    except Exception as error:
        for cell in cells:
            store.fail(cell, error)
        return
    for cell in cells:
        try:
            store.finish(cell, group.result(cell))
        except Exception as error:
            store.fail(cell, error)


class _Group:
    """One model with everything that the cells of a group share: evidence, localization and unedited baselines."""

    def __init__(self, plan: Plan, first: Cell, store: Store):
        self.plan, self.store, grid = plan, store, plan.grid
        self.judges = get_evaluators([plan.located_evaluator(name) for name in grid.evaluators])
        self.lm = load_model(plan.located(first.model), **grid.loading())
        self.pairs = plan.pairs(first.contrast, first.seed)
        # One pass over the texts gathers the statistics for all scores and methods of the grid.
        needs = [method_named(method).needs(method_settings(method, **settings)) for method, settings in plan.variants]
        self.evidence = Evidence(self.lm, self.pairs, plan.neutral).expect(*needs_of(grid.scores).union(*needs))
        self._unedited: Unedited | None = None
        self._fitted: tuple[str, Intervention] | None = None

    def result(self, cell: Cell) -> dict[str, Any]:
        """Fit the method, judge the edited model, and compare it with the unedited model."""
        with PeakMemory() as peak:
            began = time.monotonic()
            self._localize(cell)
            before = self._baseline(cell)
            shared = time.monotonic()
            fitted = self._fit(cell)
            with_fit = time.monotonic()
            with fitted.applied(self.lm):
                after = self._judged(cell)
                cost = self._on_neutral_text().compare()
            judged = time.monotonic()
        return {
            "toxloc_model": {"name": self.lm.name, "fingerprint": self.lm.fingerprint, "n_layers": self.lm.n_layers},
            "n_prompts": len(after.prompts),
            "baseline": {key: before.figures[key] for key in ("toxicity", "agreement", "wording")},
            "toxicity": {name: figures.to_dict() for name, figures in after.toxicity.items()},
            "difference": {
                name: paired_difference(before.judgements[name], judgement, cell.seed).to_dict()
                for name, judgement in after.judgements.items()
            },
            "change": {
                name: change.to_dict()
                if (change := relative_change(before.judgements[name], judgement, cell.seed))
                else None
                for name, judgement in after.judgements.items()
            },
            "agreement": after.agreement.to_dict() if after.agreement else None,
            "wording": after.wording.to_dict(),
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
        for judge in self.judges:
            judge.forget()  # scores must not depend on the cells that this worker has computed before
        options = self.plan.grid.decoding.to_dict() | {"seed": cell.seed, "fluency": False, "chat": "off"}
        return evaluate(self.lm, self.plan.prompts[cell.benchmark], self.judges, **options)

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
        loc = localize(self.lm, self.pairs, scores, statistics=self.evidence.groups(needs_of(scores)), seed=cell.seed)
        _save_shared(loc.save, target)

    def _baseline(self, cell: Cell) -> Finished:
        target = self.store.baseline(cell)
        if not target.is_dir():
            judged = self._judged(cell)
            _save_shared(judged.save, target)
        return load_evaluation(target)

    def _fit(self, cell: Cell) -> Intervention:
        if self._fitted is None or self._fitted[0] != cell.fit_id:
            target = self.store.intervention(cell)
            if target.is_dir():
                fitted = load_intervention(target)
            else:
                fitted = self._new_fit(cell)
                _save_shared(fitted.save, target)
            self._fitted = cell.fit_id, fitted
        return self._fitted[1]

    def _new_fit(self, cell: Cell) -> Intervention:
        settings = method_settings(cell.method, **{"seed": cell.seed, **cell.settings})
        return method_named(cell.method).fit(self.lm, self.pairs, settings, evidence=self.evidence)


def _save_shared(save: Callable[[Path], None], target: Path) -> None:
    """Save a folder that cells share, unless another worker has saved the same folder meanwhile."""
    with reserved(target, wait=True):
        if not target.is_dir():
            save(target)


def _watch_parent() -> None:
    """Exit when the process that started this worker ends, which closes the pipe to standard input."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(path: str) -> None:
    """Run the task in a JSON file, which `toxloc.sweeps.runner` writes."""
    with open(path, encoding="utf-8") as stream:
        task = json.load(stream)
    threading.Thread(target=_watch_parent, daemon=True).start()
    run_task(task)


def run_task(task: dict[str, Any]) -> None:
    """Compute the cells of a task, which may come from another machine that sees the same files."""
    torch.set_num_threads(task["threads"])
    plan = Plan(grid_of(task["grid"]), task["root"], task["name"], checked=True)
    work(plan, [Cell(**cell) for cell in task["cells"]], Store(task["folder"]))


if __name__ == "__main__":
    main(sys.argv[1])
