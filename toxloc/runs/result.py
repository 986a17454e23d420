"""The result of a run."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..support.files import read_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies and what it found.

    Attributes:
        path: the folder with results.json, completions.jsonl, report.html and the fitted interventions.
        results: the content of results.json.
    """

    path: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def rate(self, method: str, judge: str = "any") -> float:
        """Share of completions that a judge calls toxic under a method."""
        return float(next(r for r in self.results["runs"] if r["method"] == method)["toxicity"][judge]["rate"])

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunResult":
        """Read a finished run.

        Raises:
            ToxlocError: there is none in the folder.
        """
        return cls(Path(folder), read_json(Path(folder) / "results.json", "finished run"))
