"""Train the small language models toxloc-tiny, with toxic text, and toxloc-tiny-clean, without toxic text.

    python -m benchmarks.recipes.tokenizer corpus.json prepared
    python -m benchmarks.recipes.language_models prepared models

The command writes each model to a Hugging Face folder in `models`, in fp16. It took about 7 minutes on one H100; other
hardware gives slightly different weights. The configurations of the folders that come with toxloc name
`gelu_pytorch_tanh`, which is the same function as the `gelu_new` used here, but faster.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.recipes.training import Plan, Tokens, best_device, gpt2_config, train
from toxloc.support.files import new_folder

NATURAL = Plan(
    mix={"clean": 0.45, "toxic": 0.13, "lit": 0.42}, steps=5000, batch_size=192, lr=1.5e-3, weight_decay=0.1, seed=1
)
CLEAN = replace(NATURAL, mix={"clean": 0.52, "lit": 0.48}, seed=2)
DROPOUT = 0.1


def new_model(config: GPT2Config, tokens: Tokens, plan: Plan, name: str) -> GPT2LMHeadModel:
    """Train a model from random weights; the seed of the plan also sets the weights."""
    torch.manual_seed(plan.seed)
    model = GPT2LMHeadModel(config).to(best_device())
    train(model, model.parameters(), tokens, plan, name)
    return model


def main(
    prepared: Annotated[Path, typer.Argument(help="Folder that benchmarks.recipes.tokenizer wrote.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    steps: Annotated[int, typer.Option(help="Number of training steps of each model.", min=1)] = NATURAL.steps,
    batch_size: Annotated[int, typer.Option(help="Windows of 128 tokens per step.", min=1)] = NATURAL.batch_size,
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.", min=1)] = 256,
    layers: Annotated[int, typer.Option(help="Number of layers.", min=1)] = 8,
    heads: Annotated[int, typer.Option(help="Attention heads per layer.", min=1)] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Train toxloc-tiny and toxloc-tiny-clean."""
    tokens = Tokens.load(prepared, best_device())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prepared / "tokenizer")
    with new_folder(out, overwrite) as folder:
        for name, plan in {"toxloc-tiny": NATURAL, "toxloc-tiny-clean": CLEAN}.items():
            config = gpt2_config(len(tokenizer), d_model, layers, heads, DROPOUT)
            model = new_model(config, tokens, replace(plan, steps=steps, batch_size=batch_size), name)
            model.half().save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    typer.run(main)
