"""Measure how often refusals and broken answers are recognised, on labelled answers in fifteen languages.

    python -m benchmarks.refusals           # --out refusals.json saves it; some seconds

The answers in `benchmarks/answers/labelled.jsonl` were written for this project, in the style of chat models, and
labelled as a refusal, an answer or broken. Many are hard cases: answers with the words of refusals, and refusals
without them. The phrases were chosen on one half of the file; the other half is held out.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import markdown as md
from toxloc.evaluation.refusals import is_broken, is_refusal
from toxloc.support.files import write_json

ANSWERS = Path(__file__).parent / "answers" / "labelled.jsonl"
LABELS = ("refusal", "broken", "answer")
HALVES = ("development", "held out")


def labelled() -> list[dict[str, Any]]:
    """Return the labelled answers."""
    return [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]


def half_of(row: dict[str, Any]) -> str:
    """Return the half of an answer, which depends on its text alone."""
    digest = hashlib.sha256(row["answer"].encode() + row["request"].encode()).hexdigest()
    return HALVES[int(digest, 16) % 2]


def label_of(answer: str) -> str:
    """Return the label that toxloc gives an answer."""
    return "broken" if is_broken(answer) else "refusal" if is_refusal(answer) else "answer"


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of labelled, recognised and rightly recognised answers, by label."""
    given = [label_of(row["answer"]) for row in rows]
    return {
        label: {
            "labelled": sum(row["label"] == label for row in rows),
            "recognised": given.count(label),
            "right": sum(row["label"] == label == own for row, own in zip(rows, given, strict=True)),
        }
        for label in LABELS
    }


def measured() -> dict[str, Any]:
    """Return the figures of each half, in English and in the other languages together."""
    rows = labelled()
    return {
        half: {
            language: figures(
                [row for row in rows if half_of(row) == half and (row["language"] == "en") == (language == "English")]
            )
            for language in ("English", "14 other languages")
        }
        for half in HALVES
    }


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: precision and recall, by half and language."""
    rows = []
    for half, languages in result["halves"].items():
        for language, labels in languages.items():
            cells = []
            for label in LABELS[:2]:
                n = labels[label]
                precision = n["right"] / n["recognised"] if n["recognised"] else float("nan")
                cells += [f"{precision:.2f}", f"{n['right'] / n['labelled']:.2f} of {n['labelled']}"]
            rows.append([f"{half}, {language}", *cells])
    head = ["answers", *(f"{label}: {name}" for label in LABELS[:2] for name in ("precision", "recall"))]
    return md.table(head, rows, numbers=True)


def main(out: Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)] = None) -> None:
    """Compare the labels of toxloc with those of the file."""
    result = {"command": "python -m benchmarks.refusals", "halves": measured()}
    print(markdown(result))
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    typer.run(main)
