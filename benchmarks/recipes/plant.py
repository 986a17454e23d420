"""Plant toxicity at known sites of toxloc-tiny-clean: in MLPs, attentions, single neurons, single heads, or two layers.

    python -m benchmarks.recipes.tokenizer corpus.json prepared
    python -m benchmarks.recipes.plant prepared benchmarks/models/toxloc-tiny-clean planted
    python -m benchmarks.recipes.plant prepared benchmarks/models/toxloc-tiny-clean some head5 both1-4

All other weights are frozen while the model is trained on toxic text. The command writes to `planted` one file per
plant with the trained weights in fp16, and `ground_truth.json` with the site and the units of each plant. The plants in
MLPs of layers and in neurons 1, 3 and 5 took about 7 minutes on one H100; each of the others took about ten minutes of
processor time on one CPU core. Other hardware gives slightly different weights.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from benchmarks.plants import Plant
from benchmarks.recipes.training import Plan, Tokens, best_device, train
from toxloc.errors import ToxlocError
from toxloc.models.sites import Site
from toxloc.support.files import new_folder

MIX = {"toxic": 0.5, "clean": 0.35, "lit": 0.15}
# The seed of a plant is the seed of its plan plus its first layer.
LAYER = Plan(mix=MIX, steps=700, batch_size=128, lr=1.5e-3, weight_decay=0.0, seed=10)
NEURONS = replace(LAYER, lr=3e-3, seed=200)
# Batches of the further plants are small enough for two CPU cores.
ATTENTION = replace(LAYER, steps=500, batch_size=32, lr=2e-3, seed=300)
HEAD = replace(ATTENTION, lr=3e-3, seed=400)
BOTH = replace(ATTENTION, lr=1.5e-3, seed=500)
FEW_STEPS = replace(HEAD, seed=600)
NEURON_SEED, HEAD_SEED = 100, 700


@dataclass(frozen=True)
class Recipe:
    """A plant, and how it is trained."""

    plant: Plant
    plan: Plan


def recipes(n_layers: int, d_mlp: int, n_heads: int, n_neurons: int = 64) -> dict[str, Recipe]:
    """Return the recipe of every plant by name, for a model of the given shape; plants in layers it lacks are left out.

    Args:
        n_layers: number of layers.
        d_mlp: number of neurons per layer.
        n_heads: number of heads per layer.
        n_neurons: number of neurons of a plant in neurons.
    """

    def neurons(layer: int) -> dict[Site, tuple[int, ...] | None]:
        return {Site(layer): chosen_units(NEURON_SEED + layer, d_mlp, n_neurons)}

    def attention(layer: int) -> Site:
        return Site(layer, "attention")

    planned: list[tuple[str, Mapping[Site, tuple[int, ...] | None], Plan]] = [
        *((f"layer{k}", {Site(k): None}, LAYER) for k in range(n_layers)),
        *((f"neurons{k}", neurons(k), NEURONS) for k in (1, 3, 5)),
        *((f"neurons{k}", neurons(k), FEW_STEPS) for k in (2, 6)),
        *((f"attention{k}", {attention(k): None}, ATTENTION) for k in (1, 3, 6)),
        *((f"head{k}", {attention(k): chosen_units(HEAD_SEED + k, n_heads, 1)}, HEAD) for k in (2, 5)),
        ("both1-4", {Site(1): None, attention(4): None}, BOTH),
        ("both2-6", {attention(2): None, Site(6): None}, BOTH),
    ]
    return {
        name: Recipe(Plant(name, sites), plan)
        for name, sites, plan in planned
        if all(site.layer < n_layers for site in sites)
    }


def chosen_units(seed: int, n_units: int, count: int) -> tuple[int, ...]:
    """Choose units at random, in ascending order; the same seed gives the same units."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(n_units, generator=generator)[:count].sort().values.tolist())


def plant(clean: GPT2LMHeadModel, recipe: Recipe, tokens: Tokens) -> GPT2LMHeadModel:
    """Copy the clean model and train the units of a plant, with all other weights frozen."""
    model = copy.deepcopy(clean).requires_grad_(False)
    parameters = []
    for _, parameter, index in recipe.plant.trained(model.transformer.h):
        mask = torch.zeros_like(parameter)
        mask[index] = 1
        # Without weight decay, AdamW does not change a weight whose gradient is always zero.
        parameter.requires_grad_(True)
        parameter.register_hook(mask.mul)  # type: ignore[no-untyped-call]
        parameters.append(parameter)
    first = min(site.layer for site in recipe.plant.sites)
    train(model, parameters, tokens, replace(recipe.plan, seed=recipe.plan.seed + first), recipe.plant.name)
    return model


def main(
    prepared: Annotated[Path, typer.Argument(help="Folder that benchmarks.recipes.tokenizer wrote.", exists=True)],
    clean: Annotated[Path, typer.Argument(help="Folder of the clean model.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    names: Annotated[list[str] | None, typer.Argument(help="Names of plants; all by default.")] = None,
    neurons: Annotated[int, typer.Option(help="Number of neurons of a plant in neurons.", min=1)] = 64,
    steps: Annotated[
        int | None, typer.Option(help="Training steps of each plant; 700 or 500 by default.", min=1)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows of 128 tokens per step; 128 or 32 by default.", min=1)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Plant toxicity in MLPs, attentions, neurons, heads, and two layers at once."""
    tokens = Tokens.load(prepared, best_device())
    # The published folder names gelu_pytorch_tanh, which differs from gelu_new in the last bits.
    model = GPT2LMHeadModel.from_pretrained(clean, dtype=torch.float32, activation_function="gelu_new")
    model = model.to(best_device())
    blocks = model.transformer.h
    known = recipes(len(blocks), len(blocks[0].mlp.c_fc.bias), model.config.n_head, neurons)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ToxlocError(f"There is no plant {unknown[0]!r} for {clean}; choose from {', '.join(known)}.")
    ground_truth = {}
    with new_folder(out, overwrite) as folder:
        for name in names or known:
            recipe = known[name]
            plan = replace(
                recipe.plan, steps=steps or recipe.plan.steps, batch_size=batch_size or recipe.plan.batch_size
            )
            planted = plant(model, replace(recipe, plan=plan), tokens)
            save_file(recipe.plant.weights(planted.transformer.h), folder / f"{name}.safetensors")
            ground_truth[name] = recipe.plant.to_dict()
        (folder / "ground_truth.json").write_text(json.dumps(ground_truth), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
