"""The folder of a sweep: one file per finished or failed cell, written completely or not at all."""

import shutil
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
    """The results of a sweep so far, in a folder.

    `cells/ID.json` is a finished cell and `failed/ID.json` a failed cell. `localizations/ID`, `baselines/ID` and
    `interventions/ID` hold the results that cells share, and `logs` holds the output of the workers.

    Args:
        folder: folder of the sweep; it is created if it does not exist.

    Raises:
        ToxlocError: the folder cannot be created or written to.
    """

    def __init__(self, folder: str | PathLike[str]):
        self.folder = Path(folder)
        try:
            for name in ("cells", "failed", "localizations", "baselines", "interventions", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToxlocError(f"{folder} cannot be written to ({error}); choose another folder.") from error

    def localization(self, name: str) -> Path:
        """Return the folder of a localization."""
        return self.folder / "localizations" / name

    def baseline(self, cell: Cell) -> Path:
        """Return the folder of the evaluation of the unedited model."""
        return self.folder / "baselines" / cell.baseline_id

    def intervention(self, cell: Cell) -> Path:
        """Return the folder of the fitted intervention."""
        return self.folder / "interventions" / cell.fit_id

    def log(self, name: str) -> Path:
        """Return the file for the output of a worker."""
        return self.folder / "logs" / f"{name}.log"

    def is_done(self, cell: Cell) -> bool:
        """Return whether the cell is finished."""
        return (self.folder / "cells" / f"{cell.id}.json").is_file()

    def has_failed(self, cell: Cell) -> bool:
        """Return whether the cell has failed and is not finished."""
        return not self.is_done(cell) and (self.folder / "failed" / f"{cell.id}.json").is_file()

    def result(self, cell: Cell) -> dict[str, Any]:
        """Read a finished cell. In cells that version 0.1 wrote, the verdict "both" is read as "all"."""
        saved: dict[str, Any] = both_read_as_all(read_json(self.folder / "cells" / f"{cell.id}.json", "finished cell"))
        return saved

    def failure(self, cell: Cell) -> dict[str, Any]:
        """Read the record of a failed cell: its error and traceback."""
        return read_json(self.folder / "failed" / f"{cell.id}.json", "failed cell")

    def finish(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write the result of a cell, and delete the record of an earlier failure."""
        write_json(self.folder / "cells" / f"{cell.id}.json", {**cell.to_dict(), **result})
        self.forget_failure(cell)

    def fail(self, cell: Cell, error: BaseException | str) -> None:
        """Write the record of a failed cell: its error and, for an exception, the traceback."""
        trace = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else None
        message = str(error) if isinstance(error, str | ToxlocError) else f"{type(error).__name__}: {error}"
        write_json(self.folder / "failed" / f"{cell.id}.json", {**cell.to_dict(), "error": message, "traceback": trace})

    def forget_failure(self, cell: Cell) -> None:
        """Delete the record of a failed cell, if there is any."""
        (self.folder / "failed" / f"{cell.id}.json").unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove the files and folders that killed workers left half-written; no worker may be running."""
        for path in list(self.folder.rglob(".*.partial")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def open_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that are neither finished nor failed, in order."""
        return [cell for cell in cells if not self.is_done(cell) and not self.has_failed(cell)]
