"""Rows of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462) with the archived scores of Perspective."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int
from sklearn.model_selection import GroupKFold

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES
from toxloc.texts.tables import read_rows

FOLDS = 5


@dataclass(frozen=True)
class Rows:
    """Texts, the archived scores of all attributes, the row of each text, and whether it is a continuation."""

    texts: list[str]
    scores: Float64[np.ndarray, "n n_attributes"]
    row: Int[np.ndarray, " n"]
    continues: Bool[np.ndarray, " n"]

    def part(self, index: np.ndarray) -> "Rows":
        """Return some of the texts."""
        return Rows([self.texts[i] for i in index], self.scores[index], self.row[index], self.continues[index])


def read(path: Path) -> Rows:
    """Read the texts that have all scores.

    Raises:
        ToxlocError: no text has them.
    """
    texts, scores, rows, continues = [], [], [], []
    for number, row in enumerate(read_rows(str(path))):
        for name in ("prompt", "continuation"):
            part = row.get(name) or {}
            if str(part.get("text") or "").strip() and all(part.get(label) is not None for label in ATTRIBUTES):
                texts.append(str(part["text"]))
                scores.append([float(part[label]) for label in ATTRIBUTES])
                rows.append(number)
                continues.append(name == "continuation")
    if not texts:
        raise ToxlocError(f"No text in {path} has scores for {', '.join(ATTRIBUTES)}.")
    return Rows(texts, np.array(scores), np.array(rows), np.array(continues))


def folds(rows: Rows) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """Split the texts five times into training and test texts; both texts of a row are on the same side."""
    return list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(rows.texts, groups=rows.row))
