"""Label comments as Perspective might, with two models that were trained on RealToxicityPrompts.

The two models are a ridge regression on words and letters (`benchmarks.recipes.rtp_linear`) and version 1 of
toxloc-guard, trained further (`benchmarks.recipes.continue_guard`). A comment's label is the mean of their logits. They
see different things, so that their mean is better than either of them, and a model that is trained on the labelled
comments learns from both (knowledge distillation, Hinton et al. 2015, arXiv:1503.02531).
"""

import random
from pathlib import Path

import numpy as np

from benchmarks.recipes.continue_guard import continued, scorer
from benchmarks.recipes.rtp_linear import fit, logit
from benchmarks.recipes.rtp_rows import Rows
from benchmarks.recipes.training import KINDS, read_lists
from toxloc.evaluation.evaluators.rtp import predictor

SHARES = {"clean": 0.6, "toxic": 0.3, "lit": 0.1}
WORDS_KEPT = (8, 12, 16, 20, 25, 30)  # lengths of a piece
FEWEST_WORDS = 3


def read_comments(path: Path, count: int, seed: int = 0) -> list[str]:
    """Draw pieces of texts from the corpus of toxloc-tiny; pieces of fewer than 3 words are left out.

    Raises:
        ToxlocError: the file does not hold the lists "clean", "toxic" and "lit".
    """
    corpus, rng = read_lists(path, KINDS, "corpus"), random.Random(seed)
    drawn = [
        text
        for kind, share in SHARES.items()
        for text in rng.sample(corpus[kind], min(len(corpus[kind]), round(share * count)))
    ]
    pieces: dict[str, None] = {}
    for text in drawn:
        words, kept = text.split(), rng.choice(WORDS_KEPT)
        start = rng.randrange(max(1, len(words) - kept + 1))
        pieces[" ".join(words[start : start + kept])] = None
    return [piece for piece in pieces if len(piece.split()) >= FEWEST_WORDS]


def label(rows: Rows, comments: list[str], guard: Path) -> Rows:
    """Train the two models on rows, and return the comments with their labels as scores.

    Args:
        rows: texts and scores to train on.
        comments: texts to label.
        guard: folder of version 1 of toxloc-guard.
    """
    by_words = predictor(*fit(rows))(comments)
    by_guard = scorer(guard, continued(guard, rows))(comments)
    scores = 1 / (1 + np.exp(-(logit(by_words) + logit(by_guard)) / 2))
    return Rows(comments, scores, np.full(len(comments), -1), np.zeros(len(comments), dtype=bool))
