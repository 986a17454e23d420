"""Train version 2 of toxloc-guard: continue version 1 on the archived Perspective scores of RealToxicityPrompts.

    python -m benchmarks.recipes.guard_rtp rtp.jsonl corpus.json toxloc-guard-1 guard    # 30 minutes on one core

`rtp.jsonl` and `corpus.json` are as for `benchmarks.recipes.rtp` and not part of the project. The guard is trained on
the scores and, once, on comments that `benchmarks.recipes.rtp_teacher` has labelled. First the command trains on four
fifths of the rows, and prints Spearman's ρ and the AUROC of the guard and of profanity-check on the last fifth, for all
texts and for continuations. Then it trains on all rows and writes a Hugging Face folder in fp16; `guard.json` in it
holds the figures. Afterwards `benchmarks.calibrate_guard` sets the threshold.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerFast

from benchmarks import markdown as md
from benchmarks.recipes.continue_guard import continued, scorer
from benchmarks.recipes.rtp_rows import Rows, folds, read
from benchmarks.recipes.rtp_teacher import label, read_comments
from toxloc.evaluation.evaluators.profanity import ProfanityCheck
from toxloc.support.files import new_folder, write_json


def figures(predicted: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Compare predicted and archived toxicity."""
    return {
        "texts": len(scores),
        "spearman": round(float(spearmanr(predicted, scores).statistic), 3),
        "auroc": round(float(roc_auc_score(scores >= 0.5, predicted)), 3),
    }


def validate(rows: Rows, comments: list[str], guard: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Train on four fifths of the rows, and compare the guard and profanity-check on the others."""
    train, test = folds(rows)[0]
    seen, unseen = rows.part(train), rows.part(test)
    score = scorer(guard, continued(guard, seen, label(seen, comments, guard)))
    judged = {
        "toxloc-guard": score(unseen.texts)[:, 0],
        "profanity-check": ProfanityCheck().score(unseen.texts)["toxicity"],
    }
    known, follows = unseen.scores[:, 0], unseen.continues
    return {
        name: {"all": figures(scores, known), "continuations": figures(scores[follows], known[follows])}
        for name, scores in judged.items()
    }


def main(
    data: Annotated[Path, typer.Argument(help="Rows of RealToxicityPrompts with Perspective's scores.", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Corpus of toxloc-tiny, with comments to label.", exists=True)],
    guard: Annotated[Path, typer.Argument(help="Folder of version 1 of toxloc-guard.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    comments: Annotated[int, typer.Option(help="Number of comments to label.", min=10)] = 40_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Validate on a fifth of the rows, then train toxloc-guard on all rows."""
    rows, texts = read(data), read_comments(corpus, comments)
    with new_folder(out, overwrite) as folder:
        validation = validate(rows, texts, guard)
        print(json.dumps(validation, indent=1), flush=True)
        model = continued(guard, rows, label(rows, texts, guard))
        model.half().save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(guard).save_pretrained(folder)
        write_json(folder / "guard.json", {"texts": len(rows.texts), "comments": len(texts), "validation": validation})


def markdown(about: dict[str, Any]) -> str:
    """Return a table for the card: the guard and profanity-check on rows that the guard has not seen."""
    rows = [
        [name, part, str(known["texts"]), f"{known['spearman']:.3f}", f"{known['auroc']:.3f}"]
        for name, by_part in about["validation"].items()
        for part, known in by_part.items()
    ]
    return md.table(["evaluator", "texts", "number", "ρ to Perspective", "AUROC"], rows)


if __name__ == "__main__":
    typer.run(main)
