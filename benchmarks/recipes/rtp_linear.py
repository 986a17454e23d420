"""A ridge regression from words and sequences of letters to the logits of Perspective's scores."""

import re

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from benchmarks.recipes.rtp_rows import Rows
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, LETTERS, WORDS
from toxloc.evaluation.evaluators.spelling import Spelling

CLIP = 0.01  # scores nearer to 0 or 1 are moved here, before the logit
FEWEST = {"words": 1, "letters": 3}  # texts that a term must occur in
FEWEST_WITH_COMMENTS = {"words": 3, "letters": 10}
COMMENT = 0.2  # weight of a labelled comment, where a text with a score of Perspective has weight 1
MASKED = 400  # words with the largest weights, which `Spelling` repairs

Model = tuple[dict[str, np.ndarray], dict[str, list[str]]]  # tensors and terms, as `predictor` takes them


def logit(scores: np.ndarray) -> np.ndarray:
    """Return the logits of scores, after they are clipped."""
    clipped = scores.clip(CLIP, 1 - CLIP)
    logits: np.ndarray = np.log(clipped / (1 - clipped))
    return logits


def fit(rows: Rows, comments: Rows | None = None, alpha: float = 1.0, words: float = 0.8) -> Model:
    """Fit the regression; return the tensors and the terms of `predictor`, without correction.

    Args:
        rows: texts and scores.
        comments: labelled comments, which count less.
        alpha: strength of the penalty on squared weights.
        words: weight of the words relative to the letters.
    """
    texts = rows.texts + (comments.texts if comments else [])
    targets = np.concatenate([rows.scores, comments.scores]) if comments else rows.scores
    counts = np.ones(len(texts))
    counts[len(rows.texts) :] = COMMENT
    parts, idf = [], []
    terms: dict[str, list[str]] = {}
    for part, settings, scale in (("words", WORDS, words), ("letters", LETTERS, 1.0)):
        fewest = (FEWEST_WITH_COMMENTS if comments else FEWEST)[part]
        vectorizer = TfidfVectorizer(preprocessor=Spelling([], []).repaired, min_df=fewest, **settings)
        parts.append(scale * vectorizer.fit_transform(texts))
        terms[part] = vectorizer.get_feature_names_out().tolist()
        idf.append(vectorizer.idf_)
    ridge = Ridge(alpha=alpha, solver="sparse_cg").fit(hstack(parts).tocsr(), logit(targets), sample_weight=counts)
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
