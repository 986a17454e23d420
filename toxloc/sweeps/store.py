"""The folder of a sweep: a file for every cell that is settled, whole or not there at all."""

import traceback
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..evaluation.verdicts import both_read_as_all
from ..support.files import read_json, write_json
from .grid import Cell


class Store:
    """What a sweep has found so far.

    `cells/ID.json` is a finished cell, `failed/ID.json` one that failed, `localizations/ID`, `baselines/ID` and
    `interventions/ID` are what cells share, `logs` is what workers printed.

    Args:
        folder: of the sweep; made if it is not there.

    Raises:
        ToxlocError: it cannot be made or written to.
    """

    def __init__(self, folder: str | PathLike[str]):
        self.folder = Path(folder)
        try:
            for name in ("cells", "failed", "localizations", "baselines", "interventions", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToxlocError(f"{folder} cannot be written to ({error}); choose another folder.") from error

    def localization(self, name: str) -> Path:
        """Where a localization lies."""
        return self.folder / "localizations" / name

    def baseline(self, cell: Cell) -> Path:
        """Where the evaluation of the unedited model lies."""
        return self.folder / "baselines" / cell.baseline_id

    def intervention(self, cell: Cell) -> Path:
        """Where what was fitted lies."""
        return self.folder / "interventions" / cell.fit_id

    def log(self, name: str) -> Path:
        """Where a worker's output goes."""
        return self.folder / "logs" / f"{name}.log"

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return (self.folder / "cells" / f"{cell.id}.json").is_file()

    def has_failed(self, cell: Cell) -> bool:
        """Whether the cell was tried and failed."""
        return not self.is_done(cell) and (self.folder / "failed" / f"{cell.id}.json").is_file()

    def result(self, cell: Cell) -> dict[str, Any]:
        """Read a finished cell, also of version 0.1, whose verdict "both" is read as "all"."""
        saved: dict[str, Any] = both_read_as_all(read_json(self.folder / "cells" / f"{cell.id}.json", "finished cell"))
        return saved

    def failure(self, cell: Cell) -> dict[str, Any]:
        """Read why a cell failed."""
        return read_json(self.folder / "failed" / f"{cell.id}.json", "failed cell")

    def finish(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write a cell's result."""
        write_json(self.folder / "cells" / f"{cell.id}.json", {**cell.to_dict(), **result})
        self.forget_failure(cell)

    def fail(self, cell: Cell, error: BaseException | str) -> None:
        """Note why a cell failed."""
        trace = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else None
        said = str(error) if isinstance(error, str | ToxlocError) else f"{type(error).__name__}: {error}"
        write_json(self.folder / "failed" / f"{cell.id}.json", {**cell.to_dict(), "error": said, "traceback": trace})

    def forget_failure(self, cell: Cell) -> None:
        """Take a note of failure away."""
        (self.folder / "failed" / f"{cell.id}.json").unlink(missing_ok=True)

    def open_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return those that are neither finished nor failed, in order."""
        return [cell for cell in cells if not self.is_done(cell) and not self.has_failed(cell)]
