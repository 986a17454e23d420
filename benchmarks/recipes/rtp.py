"""Train toxloc-rtp on RealToxicityPrompts: predict Perspective's scores from words and sequences of letters.

    python -m benchmarks.recipes.rtp rtp.jsonl toxloc/support/assets/models/toxloc-rtp --overwrite    # 1 minute

The file holds rows of RealToxicityPrompts (Gehman et al. 2020): the texts of the prompt and of the continuation with
their archived scores. It is not part of the project. Before it trains on all rows, the command cross-validates: the
rows are split five times, and both texts of a row are on the same side. It writes the figures to `model.json`:

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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float64
from safetensors.numpy import save_file
from scipy.sparse import hstack
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from benchmarks import markdown as md
from benchmarks.evaluators import calibration_error
from toxloc import ToxlocError, load_neutral
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, LETTERS, WORDS, predictor
from toxloc.evaluation.evaluators.spelling import Spelling
from toxloc.support.files import new_folder, write_json
from toxloc.texts.tables import read_rows

FOLDS = 5
FEWEST = {"words": 1, "letters": 3}  # texts that a term must occur in
CLIP = 0.01  # scores nearer to 0 or 1 are moved here, before the logit
MASKED = 400  # words with the largest weights, which `Spelling` repairs
KNOTS = 21
EVERYDAY = 0.01  # largest share of everyday texts that may be called toxic


@dataclass(frozen=True)
class Rows:
    """Texts, the archived scores of all attributes, and the row that each text is from."""

    texts: list[str]
    scores: Float64[np.ndarray, "n n_attributes"]
    row: np.ndarray

    def part(self, index: np.ndarray) -> "Rows":
        """Return some of the texts."""
        return Rows([self.texts[i] for i in index], self.scores[index], self.row[index])


def read(path: Path) -> Rows:
    """Read the texts that have all scores.

    Raises:
        ToxlocError: no text has them.
    """
    texts, scores, rows = [], [], []
    for number, row in enumerate(read_rows(str(path))):
        for part in (row.get("prompt") or {}, row.get("continuation") or {}):
            if str(part.get("text") or "").strip() and all(part.get(name) is not None for name in ATTRIBUTES):
                texts.append(str(part["text"]))
                scores.append([float(part[name]) for name in ATTRIBUTES])
                rows.append(number)
    if not texts:
        raise ToxlocError(f"No text in {path} has scores for {', '.join(ATTRIBUTES)}.")
    return Rows(texts, np.array(scores), np.array(rows))


def fit(rows: Rows, alpha: float, words: float) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Fit a ridge regression to the logits; return the tensors and the terms of `predictor`, without correction.

    Args:
        rows: the texts and scores.
        alpha: strength of the penalty on squared weights.
        words: weight of the words relative to the letters.
    """
    parts = []
    terms: dict[str, list[str]] = {}
    idf = []
    for part, settings, scale in (("words", WORDS, words), ("letters", LETTERS, 1.0)):
        vectorizer = TfidfVectorizer(preprocessor=Spelling([], []).repaired, min_df=FEWEST[part], **settings)
        parts.append(scale * vectorizer.fit_transform(rows.texts))
        terms[part] = vectorizer.get_feature_names_out().tolist()
        idf.append(vectorizer.idf_)
    clipped = rows.scores.clip(CLIP, 1 - CLIP)
    ridge = Ridge(alpha=alpha, solver="sparse_cg").fit(hstack(parts).tocsr(), np.log(clipped / (1 - clipped)))
    scales = np.repeat([words, 1.0], [len(terms[part]) for part in ("words", "letters")])
    weights = ridge.coef_.T * scales[:, None]
    loud = (terms["words"][i] for i in np.argsort(-weights[: len(terms["words"]), 0]))
    terms["masked"] = [word for word in loud if re.fullmatch("[a-z]{3,}", word)][:MASKED]
    straight = np.repeat(np.array([[0.0], [1.0]])[None], len(ATTRIBUTES), axis=2)
    tensors = {
        "idf": np.concatenate(idf).astype(np.float32),
        "weights": weights.astype(np.float16),
        "bias": ridge.intercept_.astype(np.float32),
        "knots": np.concatenate([straight, straight]).astype(np.float32),
    }
    return tensors, terms


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


def cross_validate(rows: Rows, alpha: float, words: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the predictions for rows that were not seen, and what is found of disguised texts."""
    predicted = np.zeros_like(rows.scores)
    hits: dict[str, list[bool]] = {trick: [] for trick in ("none", *TRICKS)}
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(rows.texts, groups=rows.row):
        tensors, terms = fit(rows.part(train), alpha, words)
        predict, hidden = predictor(tensors, terms), frozenset(terms["masked"])
        predicted[test] = predict([rows.texts[i] for i in test])
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
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    alpha: Annotated[float, typer.Option(help="Strength of the penalty on squared weights.")] = 1.0,
    words: Annotated[float, typer.Option(help="Weight of the words relative to the letters.")] = 0.8,
    only_validate: Annotated[bool, typer.Option("--only-validate", help="Cross-validate and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Cross-validate, then train on all rows."""
    rows = read(data)
    raw, tricks = cross_validate(rows, alpha, words)
    # The correction of each half of the rows comes from the other half.
    half = np.array([random.Random(int(number)).random() < 0.5 for number in rows.row])
    corrected = np.zeros_like(raw)
    for this in (half, ~half):
        knots = correction(raw[~this], rows.scores[~this])
        for k in range(len(ATTRIBUTES)):
            corrected[this, k] = np.interp(raw[this, k], knots[0, :, k], knots[1, :, k])
    figures = {"attributes": quality(corrected, rows.scores), "tricks": tricks}
    print(json.dumps(figures, indent=1))
    if only_validate:
        return
    tensors, terms = fit(rows, alpha, words)
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
