"""Continue version 1 of toxloc-guard on graded scores: one logit per attribute of Perspective."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.recipes.guard import SCORED_TOGETHER, Example, collate, encode, logits, shuffled_batches
from benchmarks.recipes.rtp_rows import Rows
from benchmarks.recipes.training import best_device, descend
from toxloc.evaluation.evaluators.guard import normalise
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES
from toxloc.support.quiet import quiet

SEED = 0
DROPOUT = 0.15
LR = 3e-4
WEIGHT_DECAY = 0.05
WARM_UP = 100  # steps
EPOCHS = 3  # passes over the texts with scores; labelled comments are seen once
BATCH = 32


def examples_of(tokenizer: PreTrainedTokenizerFast, rows: Rows) -> list[Example]:
    """Normalise and tokenise texts; the labels are the scores of all attributes."""
    return encode(
        tokenizer,
        [("", normalise(text), scores) for text, scores in zip(rows.texts, rows.scores.tolist(), strict=True)],
    )


def new_model(folder: Path) -> GPT2ForSequenceClassification:
    """Load version 1 with a new head, which has one logit per attribute."""
    torch.manual_seed(SEED)
    with quiet():
        model = GPT2ForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            id2label=dict(enumerate(ATTRIBUTES)),
            label2id={name: k for k, name in enumerate(ATTRIBUTES)},
            problem_type="multi_label_classification",
            ignore_mismatched_sizes=True,
            resid_pdrop=DROPOUT,
            embd_pdrop=DROPOUT,
            attn_pdrop=DROPOUT,
        )
    torch.nn.init.normal_(model.score.weight, std=0.02)
    return model.to(best_device())


def train(model: GPT2ForSequenceClassification, scored: list[Example], comments: list[Example]) -> None:
    """Train in place, and leave the model in evaluation mode.

    The loss is the cross-entropy between the scores and the sigmoids of the logits. Each of the passes over the texts
    with scores also has its share of the labelled comments.
    """
    rng = random.Random(SEED)
    parts = [comments[k::EPOCHS] for k in range(EPOCHS)]
    steps = max(1, (EPOCHS * len(scored) + len(comments)) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimiser, lambda step: min(1, (step + 1) / WARM_UP) * max(0.02, 1 - step / steps))
    model.train()
    for part in parts:
        for batch in shuffled_batches(scored + part, BATCH, rng):
            ids, mask, scores = collate(batch, model.device)
            descend(F.binary_cross_entropy_with_logits(logits(model, ids, mask), scores.float()), optimiser, schedule)
    model.eval()


@torch.inference_mode()
def predict(model: GPT2ForSequenceClassification, examples: Sequence[Example]) -> Float64[np.ndarray, "n n_attributes"]:
    """Return the predicted scores."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    scores = np.zeros((len(examples), model.config.num_labels))
    for start in range(0, len(order), SCORED_TOGETHER):
        batch = order[start : start + SCORED_TOGETHER]
        ids, mask, _ = collate([examples[i] for i in batch], model.device)
        scores[batch] = logits(model, ids, mask).sigmoid().double().cpu().numpy()
    return scores


def continued(folder: Path, rows: Rows, comments: Rows | None = None) -> GPT2ForSequenceClassification:
    """Load version 1 from a folder and continue its training on rows and, if there are any, on labelled comments."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = new_model(folder)
    train(model, examples_of(tokenizer, rows), examples_of(tokenizer, comments) if comments else [])
    return model


def scorer(
    folder: Path, model: GPT2ForSequenceClassification
) -> Callable[[list[str]], Float64[np.ndarray, "n n_attributes"]]:
    """Return the function from texts to predicted scores; the folder has the tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return lambda texts: predict(model, encode(tokenizer, [("", normalise(text), 0) for text in texts]))
