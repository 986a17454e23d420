"""`sweep`: compute the cells of a grid in worker processes on this machine or on Ray, and continue stopped sweeps."""

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from typing import Any

from ..errors import ToxlocError
from ..support.files import write_json
from ..support.locks import locked
from .grid import Cell, Plan
from .store import Store
from .summary import Summary
from .worker import run_task

WAIT = 0.3  # seconds between two checks for finished cells and workers
Task = dict[str, Any]
Watcher = Callable[[Cell, Store], None]


def sweep(
    plan: Plan,
    out: str | PathLike[str],
    *,
    jobs: int = 1,
    ray: str | None = None,
    retry_failed: bool = False,
    on_settled: Watcher | None = None,
) -> Summary:
    """Compute every cell of a grid that is not in the folder yet, and summarise all cells.

    Cells with the same model, contrast set and seed share a localization and are computed by one worker, which is a
    separate process. If a worker dies, the cell that it was computing fails, and a new worker computes the others. A
    result is written completely or not at all, so a sweep that was killed can be continued with the same call, and two
    grids may share a folder.

    Args:
        plan: the plan of the grid.
        out: folder for the results. If Ray uses other machines, they must see it under the same path.
        jobs: number of workers at the same time on this machine; CUDA devices are assigned to them in turn.
        ray: address of a Ray cluster, in place of `jobs`: "auto" for the cluster that runs here, "local" to start a
            cluster on this machine.
        retry_failed: compute cells again that failed before.
        on_settled: called with each cell and the store when the cell has finished or failed.

    Raises:
        ToxlocError: `jobs` is less than 1, the folder cannot be written to, another sweep is writing to it, Ray is not
            available, or the Ray cluster has fewer resources than the grid reserves for a worker.

    Example:
        >>> grid = toxloc.load_grid("examples/offline-grid.yaml")                  # doctest: +SKIP
        >>> toxloc.sweep(toxloc.Plan(grid), "grid-results", jobs=2).best()         # doctest: +SKIP
    """
    if jobs < 1:
        raise ToxlocError(f"jobs={jobs}: give the number of workers, 1 or more.")
    store = Store(out)
    with locked(store.folder / ".lock", f"Another sweep is writing to {out}; wait for it, or choose another folder."):
        store.remove_unfinished()
        if retry_failed:
            for cell in plan.cells:
                store.forget_failure(cell)
        pool = _RayPool(plan, store, ray) if ray is not None else _LocalPool(plan, store, jobs)
        with pool:
            _run(pool, store, store.open_cells(plan.cells), on_settled)
        summary = Summary(plan, store)
        summary.write()
    return summary


def _run(pool: "_Pool", store: Store, cells: Sequence[Cell], on_settled: Watcher | None) -> None:
    waiting = [list(group) for _, group in groupby(cells, lambda cell: cell.group)]
    running: list[tuple[_Worker, list[Cell]]] = []
    open_cells = list(cells)
    while waiting or running:
        while waiting and len(running) < pool.size:
            running.append((pool.start(waiting[0]), waiting.pop(0)))
        time.sleep(WAIT)
        for worker, members in list(running):
            reason = worker.ended()
            if reason is None:
                continue
            running.remove((worker, members))
            if rest := store.open_cells(members):  # the first cell was being computed; a new worker takes the others
                store.fail(rest[0], f"the worker ended: {reason or 'no reason given'}; see {store.folder / 'logs'}")
                if rest[1:]:
                    waiting.insert(0, rest[1:])
        still_open = store.open_cells(open_cells)
        for cell in open_cells:
            if cell not in still_open and on_settled:
                on_settled(cell, store)
        open_cells = still_open


class _Worker(ABC):
    @abstractmethod
    def ended(self) -> str | None:
        """Return None while the worker runs, "" if it ended normally, else the reason why it ended."""


class _Pool(ABC):
    """Starts workers.

    Attributes:
        size: maximum number of workers at the same time.
    """

    size: int

    def __init__(self, plan: Plan, store: Store):
        self.task: Task = {
            "grid": plan.grid.model_dump(mode="json"),
            "root": str(plan.root.resolve()),
            "name": plan.name,
            "folder": str(store.folder.resolve()),
        }

    @abstractmethod
    def start(self, cells: list[Cell]) -> _Worker:
        """Start a worker that computes these cells."""

    def __enter__(self) -> "_Pool":
        return self

    @abstractmethod
    def __exit__(self, *_: Any) -> None:
        """Stop all running workers."""


@dataclass
class _Process(_Worker):
    process: "subprocess.Popen[bytes]"
    slot: int

    def ended(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        if code < 0:
            return f"signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return "" if code == 0 else f"exit code {code}"


class _LocalPool(_Pool):
    """Worker processes on this machine. They exit when this process ends, because their standard input then closes."""

    def __init__(self, plan: Plan, store: Store, jobs: int):
        super().__init__(plan, store)
        self.size, self.store, self.workers, self.started = jobs, store, list[_Process](), 0
        self.threads = plan.grid.resources.cpus or _threads(jobs)

    def start(self, cells: list[Cell]) -> _Worker:
        self.workers = [worker for worker in self.workers if worker.ended() is None]
        slot = next(i for i in range(self.size) if i not in {worker.slot for worker in self.workers})
        self.started += 1
        path = self.store.log(f"worker-{self.started}").with_suffix(".json")
        write_json(path, self.task | {"cells": [cell.to_dict() for cell in cells], "threads": self.threads})
        with self.store.log(f"worker-{self.started}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "toxloc.sweeps.worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _devices(slot),
            )
        worker = _Process(process, slot)
        self.workers.append(worker)
        return worker

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.wait()
            if worker.process.stdin:
                worker.process.stdin.close()


def _threads(jobs: int) -> int:
    """Return the threads of each worker: OMP_NUM_THREADS if it is set, else an equal share of the processors."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdecimal() and int(chosen) > 0 else max(1, len(_processors()) // jobs)


def _processors() -> set[int]:
    """Return the processors that this process may use."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _devices(slot: int) -> dict[str, str]:
    """Return environment variables that assign one CUDA device to a worker, in turn, if there are several devices."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


class _RayTask(_Worker):
    def __init__(self, ray: Any, reference: Any):
        self.ray, self.reference = ray, reference

    def ended(self) -> str | None:
        done, _ = self.ray.wait([self.reference], timeout=0)
        if not done:
            return None
        try:
            self.ray.get(self.reference)
        except self.ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]
        return ""


class _RayPool(_Pool):
    """Tasks on a Ray cluster. Ray itself queues them until the resources that they reserve are free."""

    size = 1 << 30  # no limit

    def __init__(self, plan: Plan, store: Store, address: str):
        super().__init__(plan, store)
        try:
            import ray
        except ImportError:
            raise ToxlocError("Ray is not installed; run `pip install 'toxloc[ray]'`, or use --jobs.") from None
        self.ray, resources = ray, plan.grid.resources
        try:
            ray.init(
                address=None if address == "local" else address,
                ignore_reinit_error=True,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ToxlocError(
                f"There is no Ray cluster at {address!r} ({error}); start a cluster with `ray start --head`, "
                "or give --ray local."
            ) from error
        available = ray.cluster_resources()
        threads = resources.cpus or 1
        for name, reserved in (("CPU", threads), ("GPU", resources.gpus)):
            if reserved > available.get(name, 0):
                ray.shutdown()
                raise ToxlocError(
                    f"The grid reserves {reserved:g} {name} for a worker, but the Ray cluster has "
                    f"{available.get(name, 0):g}; lower resources in the grid."
                )
        self.task |= {"threads": threads}
        self.remote = ray.remote(num_cpus=threads, num_gpus=resources.gpus, max_retries=0)(run_task)

    def start(self, cells: list[Cell]) -> _Worker:
        return _RayTask(self.ray, self.remote.remote(self.task | {"cells": [cell.to_dict() for cell in cells]}))

    def __exit__(self, *_: Any) -> None:
        self.ray.shutdown()
