"""`sweep`: every cell of a grid, by worker processes here or by Ray's anywhere, going on where it was stopped."""

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from typing import Any

from ..errors import ToxlocError
from ..support.files import write_json
from .grid import Cell, Plan
from .store import Store
from .summary import Summary
from .worker import run_told

WAIT = 0.3  # seconds between two looks at what is finished
Told = dict[str, Any]
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
    """Compute every cell of a grid that is not in the folder yet, and sum all of them up.

    Cells of one model, contrast set and seed share a localization and go to one worker, a process of its own that is
    started anew should it die. A result appears whole or not at all, so a sweep that was killed goes on with the same
    call, and two grids may share a folder.

    Args:
        plan: the grid.
        out: folder for the results; other machines must see it under the same path if Ray uses them.
        jobs: workers at a time on this machine; CUDA devices are dealt out to them in turn.
        ray: address of a Ray cluster ("auto" for the one that runs here, "local" to start one), instead of `jobs`.
        retry_failed: try cells again that failed before.
        on_settled: called with every cell that is finished or has failed, as it comes.

    Raises:
        ToxlocError: another sweep is writing to the folder, it cannot be written to, or Ray is not to be had.

    Example:
        >>> grid = toxloc.load_grid("examples/offline-grid.yaml")                  # doctest: +SKIP
        >>> toxloc.sweep(toxloc.Plan(grid), "grid-results", jobs=2).best()         # doctest: +SKIP
    """
    if jobs < 1:
        raise ToxlocError(f"jobs={jobs}: give the number of workers, 1 or more.")
    store = Store(out)
    with _alone(store):
        if retry_failed:
            for cell in plan.cells:
                store.forget_failure(cell)
        crew = _OnRay(plan, store, ray) if ray is not None else _Here(plan, store, jobs)
        with crew:
            _run(crew, store, store.open_cells(plan.cells), on_settled)
        summary = Summary(plan, store)
        summary.write()
    return summary


def _run(crew: "_Crew", store: Store, cells: Sequence[Cell], on_settled: Watcher | None) -> None:
    waiting = [list(same) for _, same in groupby(cells, lambda cell: cell.group)]
    running: list[tuple[_Worker, list[Cell]]] = []
    open_cells = list(cells)
    while waiting or running:
        while waiting and len(running) < crew.size:
            running.append((crew.start(waiting[0]), waiting.pop(0)))
        time.sleep(WAIT)
        for worker, members in list(running):
            died = worker.ended()
            if died is None:
                continue
            running.remove((worker, members))
            if rest := store.open_cells(members):  # the first was under way; the others have another chance
                store.fail(rest[0], f"the worker ended: {died or 'it gave no reason'}; see {store.folder / 'logs'}")
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
        """Return None while it runs, else why it ended: nothing if all is well."""


class _Crew(ABC):
    """Starts workers.

    Attributes:
        size: how many at a time.
    """

    size: int

    def __init__(self, plan: Plan, store: Store):
        self.told: Told = {
            "grid": plan.grid.model_dump(mode="json"),
            "root": str(plan.root.resolve()),
            "name": plan.name,
            "folder": str(store.folder.resolve()),
        }

    @abstractmethod
    def start(self, cells: list[Cell]) -> _Worker:
        """Put a worker to these cells."""

    def __enter__(self) -> "_Crew":
        return self

    @abstractmethod
    def __exit__(self, *_: Any) -> None:
        """Stop all that run."""


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


class _Here(_Crew):
    """Processes on this machine. Each ends with this one: it waits for the end of its standard input."""

    def __init__(self, plan: Plan, store: Store, jobs: int):
        super().__init__(plan, store)
        self.size, self.store, self.workers, self.started = jobs, store, list[_Process](), 0
        self.threads = plan.grid.resources.cpus or max(1, len(_processors()) // jobs)

    def start(self, cells: list[Cell]) -> _Worker:
        self.workers = [worker for worker in self.workers if worker.ended() is None]
        slot = next(i for i in range(self.size) if i not in {worker.slot for worker in self.workers})
        self.started += 1
        task = self.store.log(f"worker-{self.started}").with_suffix(".json")
        write_json(task, self.told | {"cells": [cell.to_dict() for cell in cells], "threads": self.threads})
        with self.store.log(f"worker-{self.started}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "toxloc.sweeps.worker", str(task)],
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


def _processors() -> set[int]:
    """Processors that this process may use."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _devices(slot: int) -> dict[str, str]:
    """Environment that gives a worker a CUDA device of its own, in turn, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


class _Task(_Worker):
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


class _OnRay(_Crew):
    """Tasks of Ray, which queues them itself until what they reserve is free."""

    size = 1 << 30

    def __init__(self, plan: Plan, store: Store, address: str):
        super().__init__(plan, store)
        try:
            import ray
        except ImportError:
            raise ToxlocError("Ray is not installed; run `pip install 'toxloc[ray]'`, or use --jobs.") from None
        self.ray, wanted = ray, plan.grid.resources
        try:
            ray.init(
                address=None if address == "local" else address,
                ignore_reinit_error=True,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ToxlocError(
                f"There is no Ray cluster at {address!r} ({error}); start one with `ray start --head`, "
                "or give --ray local."
            ) from error
        have = ray.cluster_resources()
        threads = wanted.cpus or 1
        for name, asked in (("CPU", threads), ("GPU", wanted.gpus)):
            if asked > have.get(name, 0):
                ray.shutdown()
                raise ToxlocError(
                    f"The grid reserves {asked:g} {name} for a worker, and the Ray cluster has "
                    f"{have.get(name, 0):g}; lower resources in the grid."
                )
        self.told |= {"threads": threads}
        self.remote = ray.remote(num_cpus=threads, num_gpus=wanted.gpus, max_retries=0)(run_told)

    def start(self, cells: list[Cell]) -> _Worker:
        return _Task(self.ray, self.remote.remote(self.told | {"cells": [cell.to_dict() for cell in cells]}))

    def __exit__(self, *_: Any) -> None:
        self.ray.shutdown()


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(store.folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ToxlocError(f"Another sweep is writing to {store.folder}; wait for it, or choose another folder.") from (
            None
        )
