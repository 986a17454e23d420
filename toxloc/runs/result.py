"""The result of a run."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..evaluation.verdicts import both_read_as_all
from ..support.files import read_json

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)  # in version 1 the verdict "all" is called "both"
NEEDED = ("model", "settings", "localization", "runs")  # keys of results.json that every run has


@dataclass(frozen=True)
class RunResult:
    """The folder and the figures of a finished run.

    Attributes:
        path: folder with results.json, completions.jsonl, report.html and the fitted interventions.
        results: content of results.json.
    """

    path: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.path / "report.html"

    @property
    def methods(self) -> list[str]:
        """Names of the methods that were judged, "baseline" first."""
        return [entry["method"] for entry in self.results["runs"]]

    def rate(self, method: str, judge: str = "any") -> float:
        """Return the share of toxic completions, from 0 to 1.

        Args:
            method: name of a method that was judged, or "baseline".
            judge: name of an evaluator, "any", "majority" or "all".

        Raises:
            ToxlocError: this run has no such method or evaluator; the message lists the names that it has.

        Example:
            >>> RunResult.load("first-run").rate("trne")      # doctest: +SKIP
            0.015
        """
        entry = next((entry for entry in self.results["runs"] if entry["method"] == method), None)
        if entry is None:
            raise ToxlocError(f"This run has no method {method!r}; it has {', '.join(self.methods)}.")
        if judge not in entry["toxicity"]:
            raise ToxlocError(f"This run has no evaluator {judge!r}; it has {', '.join(entry['toxicity'])}.")
        return float(entry["toxicity"][judge]["rate"])

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunResult":
        """Load a finished run from its folder.

        In runs that version 0.1 wrote, the verdict "all" is called "both"; it is read as "all".

        Raises:
            ToxlocError: the folder holds no run, the run is damaged, or a newer version of toxloc wrote it.
        """
        results = read_json(Path(folder) / "results.json", "finished run")
        if results.get("format_version") not in READABLE:
            raise ToxlocError(
                f"{folder} has format version {results.get('format_version')}, but this version of toxloc reads "
                f"{' and '.join(map(str, READABLE))}; load it with the version of toxloc that wrote it."
            )
        missing = [name for name in NEEDED if name not in results]
        try:
            results = both_read_as_all(results)
            for entry in results.get("runs", []):
                _ = entry["method"], [float(figures["rate"]) for figures in entry["toxicity"].values()]
        except (KeyError, TypeError, ValueError, AttributeError):
            missing.append("runs")
        if missing:
            raise ToxlocError(f"The run in {folder} is damaged: {', '.join(dict.fromkeys(missing))} cannot be read.")
        return cls(Path(folder), results)
