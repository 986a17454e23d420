"""Train toxloc-guard, the toxicity classifier, from the first four layers of toxloc-tiny.

    python -m benchmarks.recipes.guard guard.json toxloc/support/assets/models/toxloc-tiny guard

The data is a JSON object with the lists "train", "test" and "hatecheck", whose rows are [source, text, label]. The
texts are normalised with `toxloc.evaluation.evaluators.guard.normalise`; the label is 1 for toxic and 0 for neutral.
The data is not part of the project. The command writes a Hugging Face folder in fp16 to `guard`, and after each epoch
prints the AUROC on "test" and "hatecheck" for each source that has both labels. It took about 2 minutes on one H100;
other hardware gives slightly different weights. Afterwards `benchmarks.calibrate_guard` sets the threshold.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float, Int
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.recipes.training import END_ID, best_device, descend, gpt2_config, mixed_precision, read_lists
from toxloc.evaluation.evaluators.guard import MAX_TOKENS
from toxloc.support.files import new_folder

SEED = 0
DROPOUT = 0.15
LR = 6e-4
WEIGHT_DECAY = 0.05
WARM_UP = 300  # steps
LABEL_SMOOTHING = 0.03
SORTED_TOGETHER = 50  # batches whose texts are sorted by length together
SCORED_TOGETHER = 256  # texts per batch when scoring

Example = tuple[list[int], int]


def new_classifier(folder: Path, layers: int) -> GPT2ForSequenceClassification:
    """Build a classifier from the first layers of a language model; only the classification head is random."""
    language_model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    size = language_model.config
    torch.manual_seed(SEED)
    model = GPT2ForSequenceClassification(
        gpt2_config(
            size.vocab_size,
            size.n_embd,
            layers,
            size.n_head,
            DROPOUT,
            num_labels=2,
            id2label={0: "neutral", 1: "toxic"},
            label2id={"neutral": 0, "toxic": 1},
        )
    )
    kept = model.transformer.state_dict().keys()
    model.transformer.load_state_dict(
        {name: value for name, value in language_model.transformer.state_dict().items() if name in kept}
    )
    return model.to(best_device())


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[Any]]) -> list[Example]:
    """Tokenise rows, and return tokens and labels; every text ends with the end token, where the verdict is read."""
    return [([*tokenizer(text)["input_ids"][:MAX_TOKENS], END_ID], label) for _, text, label in rows]


def collate(
    examples: Sequence[Example], device: torch.device
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"], Int[Tensor, " batch"]]:
    """Pad a batch on the right; return tokens, mask and labels."""
    ids = torch.full((len(examples), max(len(row) for row, _ in examples)), END_ID)
    mask = torch.zeros_like(ids)
    for k, (row, _) in enumerate(examples):
        ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
    return ids.to(device), mask.to(device), torch.tensor([label for _, label in examples], device=device)


def logits(
    model: GPT2ForSequenceClassification, ids: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch 2"]:
    """Compute the logits of the classes at the last token of each text."""
    hidden = model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    verdict: Tensor = model.score(hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1])
    return verdict


def shuffled_batches(examples: list[Example], batch_size: int, rng: random.Random) -> list[list[Example]]:
    """Shuffle the examples in place and split them into batches of similar length, which need little padding."""
    rng.shuffle(examples)
    size = batch_size * SORTED_TOGETHER
    chunks = [
        sorted(examples[start : start + size], key=lambda example: len(example[0]))
        for start in range(0, len(examples), size)
    ]
    batches = [chunk[start : start + batch_size] for chunk in chunks for start in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches


def train(
    model: GPT2ForSequenceClassification, examples: list[Example], epochs: int, batch_size: int
) -> Iterator[float]:
    """Train the classifier in place; after each epoch, yield the last loss."""
    steps = max(1, epochs * len(examples) // batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimiser, lambda step: min(1, (step + 1) / WARM_UP) * max(0.02, 1 - step / steps))
    rng = random.Random(SEED)
    for _ in range(epochs):
        model.train()
        for batch in shuffled_batches(examples, batch_size, rng):
            ids, mask, labels = collate(batch, model.device)
            with mixed_precision(model.device):
                loss = F.cross_entropy(logits(model, ids, mask).float(), labels, label_smoothing=LABEL_SMOOTHING)
            descend(loss, optimiser, schedule)
        yield loss.item()


@torch.no_grad()
def aurocs(
    model: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[Any]]
) -> dict[str, float]:
    """Compute the AUROC for each source that has toxic and neutral rows."""
    model.eval()
    examples = encode(tokenizer, rows)
    scores: list[float] = []
    for start in range(0, len(examples), SCORED_TOGETHER):
        ids, mask, _ = collate(examples[start : start + SCORED_TOGETHER], model.device)
        scores += logits(model, ids, mask).softmax(-1)[:, 1].tolist()
    sources, labels, toxicity = np.array([row[0] for row in rows]), np.array([row[2] for row in rows]), np.array(scores)
    areas = {}
    for source in sorted(set(sources.tolist())):
        toxic, neutral = (toxicity[(sources == source) & (labels == label)] for label in (1, 0))
        if len(toxic) and len(neutral):
            area = mannwhitneyu(toxic, neutral).statistic / (len(toxic) * len(neutral))
            areas[source] = round(float(area), 3)
    return areas


def main(
    data: Annotated[Path, typer.Argument(help='JSON with lists of rows: "train", "test" and "hatecheck".')],
    model_folder: Annotated[Path, typer.Argument(help="Folder of toxloc-tiny.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    layers: Annotated[int, typer.Option(help="Number of layers to keep.", min=1)] = 4,
    epochs: Annotated[int, typer.Option(help="Number of passes over the rows.", min=1)] = 4,
    batch_size: Annotated[int, typer.Option(help="Texts per step.", min=1)] = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Train toxloc-guard from the first layers of toxloc-tiny."""
    rows = read_lists(data, ("train", "test", "hatecheck"), "data file of the guard")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    with new_folder(out, overwrite) as folder:
        examples = encode(tokenizer, rows["train"])
        model = new_classifier(model_folder, layers)
        for epoch, loss in enumerate(train(model, examples, epochs, batch_size)):
            print(
                f"epoch {epoch}: loss {loss:.3f}, AUROC",
                aurocs(model, tokenizer, rows["test"] + rows["hatecheck"]),
                flush=True,
            )
        model.eval().half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
