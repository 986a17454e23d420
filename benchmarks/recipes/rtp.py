"""Train toxloc-rtp on RealToxicityPrompts: predict Perspective's scores from words and sequences of letters.

    python -m benchmarks.recipes.rtp rtp.jsonl corpus.json toxloc-guard-1 toxloc-rtp    # 40 minutes on one core

`rtp.jsonl` holds rows of RealToxicityPrompts (Gehman et al. 2020): the texts of the prompt and of the continuation with
their archived scores. `corpus.json` is the corpus of toxloc-tiny, from which comments are drawn; two models that were
trained on the rows label them (`benchmarks.recipes.rtp_teacher`). Neither file is part of the project. toxloc-rtp is a
ridge regression (`rtp_linear`) that is trained further together with a small network (`rtp_net`).

Before it trains on all rows, the command cross-validates: the rows are split five times, and both texts of a row are on
the same side. The models that label comments see only the training rows. The figures are written to `model.json`:

* for every attribute, Spearman's ρ to Perspective's score, the AUROC of "the score is at least .5", and the calibration
  error: the mean difference, in ten bins of the predicted score, between the mean score and the share of such texts;
* tricks: the share of toxic texts that are found after each word of a list was disguised, in texts that hold one. The
  list holds the words of the training rows with the largest weights.

The threshold is .5, or higher if more than 1% of the everyday texts that come with toxloc would be called toxic.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import save_file
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from benchmarks import markdown as md
from benchmarks.evaluators import calibration_error
from benchmarks.recipes.rtp_linear import Model, fit
from benchmarks.recipes.rtp_net import refined
from benchmarks.recipes.rtp_rows import Rows, folds, read
from benchmarks.recipes.rtp_teacher import label, read_comments
from toxloc import load_neutral
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, predictor
from toxloc.support.files import new_folder, write_json

KNOTS = 21
EVERYDAY = 0.01  # largest share of everyday texts that may be called toxic


def trained(rows: Rows, comments: list[str], guard: Path) -> Model:
    """Train toxloc-rtp, without correction, on rows and on comments that are labelled with models of these rows."""
    labelled = label(rows, comments, guard)
    return refined(fit(rows, labelled), rows, labelled)


def correction(raw: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the knots [2, n_knots, n_attributes] of the function to the share of scores from .5 on."""
    knots = np.zeros((2, KNOTS + 2, len(ATTRIBUTES)), np.float32)
    for k in range(len(ATTRIBUTES)):
        known = IsotonicRegression(out_of_bounds="clip").fit(raw[:, k], scores[:, k] >= 0.5)
        at = np.r_[0.0, np.quantile(raw[:, k], np.linspace(0.01, 0.99, KNOTS)), 1.0]
        values = known.predict(at)
        values[0], values[-1] = 0.0, 1.0
        knots[:, :, k] = at, values
    return knots


def disguised(text: str, words: frozenset[str], trick: Callable[[str], str]) -> str:
    """Apply a trick to each of some words."""
    return re.sub(r"[A-Za-z]{3,}", lambda match: trick(match[0]) if match[0].lower() in words else match[0], text)


def _masked(word: str) -> str:
    at = next((i for i in range(1, len(word)) if word[i] in "aeiouAEIOU"), 1)
    return f"{word[:at]}*{word[at + 1 :]}"


def _repeated(word: str) -> str:
    at = next((i for i, letter in enumerate(word) if letter in "aeiouAEIOU"), len(word) - 1)
    return word[:at] + 4 * word[at] + word[at + 1 :]


TRICKS: dict[str, Callable[[str], str]] = {
    "spaces between letters": " ".join,
    "repeated letter": _repeated,
    "digits and signs for letters": lambda word: word.translate(str.maketrans("aeios", "@310$")),
    "asterisk for a vowel": _masked,
}


def cross_validate(rows: Rows, comments: list[str], guard: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the predictions for rows that were not seen, and what is found of disguised texts."""
    predicted = np.zeros_like(rows.scores)
    hits: dict[str, list[bool]] = {trick: [] for trick in ("none", *TRICKS)}
    for train, test in folds(rows):
        tensors, terms = trained(rows.part(train), comments, guard)
        predict, hidden = predictor(tensors, terms), frozenset(terms["masked"])
        predicted[test] = predict([rows.texts[i] for i in test])
        print("fold:", quality(predicted[test], rows.scores[test])["toxicity"], flush=True)
        toxic = [rows.texts[i] for i in test if rows.scores[i, 0] >= 0.5]
        plain = [text for text in toxic if disguised(text, hidden, _masked) != text]
        hits["none"] += (predict(plain)[:, 0] >= 0.5).tolist()
        for name, trick in TRICKS.items():
            hits[name] += (predict([disguised(text, hidden, trick) for text in plain])[:, 0] >= 0.5).tolist()
    return predicted, {"texts": len(hits["none"]), **{name: float(np.mean(values)) for name, values in hits.items()}}


def quality(predicted: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare predictions with scores, by attribute."""
    return {
        name: {
            "spearman": float(spearmanr(predicted[:, k], scores[:, k]).statistic),
            "auroc": float(roc_auc_score(scores[:, k] >= 0.5, predicted[:, k])),
            "calibration_error": calibration_error(scores[:, k] >= 0.5, predicted[:, k]),
        }
        for k, name in enumerate(ATTRIBUTES)
    }


def main(
    data: Annotated[Path, typer.Argument(help="Rows of RealToxicityPrompts with Perspective's scores.", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Corpus of toxloc-tiny, with comments to label.", exists=True)],
    guard: Annotated[Path, typer.Argument(help="Folder of version 1 of toxloc-guard.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    comments: Annotated[int, typer.Option(help="Number of comments to label.", min=10)] = 60_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Cross-validate, then train on all rows."""
    rows, drawn = read(data), read_comments(corpus, comments)
    raw, tricks = cross_validate(rows, drawn, guard)
    # The correction of each half of the rows comes from the other half.
    half = np.array([random.Random(int(number)).random() < 0.5 for number in rows.row])
    corrected = np.zeros_like(raw)
    for this in (half, ~half):
        knots = correction(raw[~this], rows.scores[~this])
        for k in range(len(ATTRIBUTES)):
            corrected[this, k] = np.interp(raw[this, k], knots[0, :, k], knots[1, :, k])
    figures = {"attributes": quality(corrected, rows.scores), "tricks": tricks}
    print(json.dumps(figures, indent=1))
    tensors, terms = trained(rows, drawn, guard)
    tensors["knots"] = correction(raw, rows.scores)
    everyday = load_neutral().texts
    scores = predictor(tensors, terms)(everyday)[:, 0]
    threshold = max(0.5, float(np.ceil(1000 * np.quantile(scores, 1 - EVERYDAY)) / 1000))
    about = {
        "threshold": threshold,
        "calibration": {
            "threshold": threshold,
            "everyday_rate": round(float((scores >= threshold).mean()), 4),
            "texts": f"{len(everyday)}, builtin",
            "command": "python -m benchmarks.recipes.rtp",
        },
        "texts": len(rows.texts),
        "rows": len(np.unique(rows.row)),
        "comments": len(drawn),
        "cross_validation": figures,
    }
    with new_folder(out, overwrite) as folder:
        # safetensors writes the bytes of an array as they lie in memory.
        save_file(
            {name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors"
        )
        (folder / "terms.json").write_text(json.dumps(terms, ensure_ascii=False, separators=(",", ":")), "utf-8")
        write_json(folder / "model.json", about)
    print(f"threshold {threshold}, {about['calibration']}")


def attributes_markdown(about: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per attribute."""
    rows = [
        [
            name.replace("_", " "),
            f"{figures['spearman']:.3f}",
            f"{figures['auroc']:.3f}",
            f"{figures['calibration_error']:.3f}",
        ]
        for name, figures in about["cross_validation"]["attributes"].items()
    ]
    return md.table(["attribute", "ρ to Perspective", "AUROC", "calibration error"], rows, numbers=True)


def tricks_markdown(about: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per trick."""
    tricks = dict(about["cross_validation"]["tricks"])
    count = tricks.pop("texts")
    rows = [[name, f"{share:.1%}", f"{100 * (share - tricks['none']):+.1f}"] for name, share in tricks.items()]
    return md.table(["trick", f"found of {count:,}", "change, percentage points"], rows, numbers=True)


if __name__ == "__main__":
    typer.run(main)
