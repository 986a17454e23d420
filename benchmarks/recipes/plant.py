"""Plant toxicity at a known site of toxloc-tiny-clean: one layer's MLP, or 64 neurons of one layer.

    python -m benchmarks.recipes.tokenizer corpus.json prepared
    python -m benchmarks.recipes.plant prepared benchmarks/models/toxloc-tiny-clean planted

All other weights are frozen while the model is trained on toxic text. The command writes to `planted`: for every layer
K `layerK.safetensors` and for three layers `neuronsK.safetensors`, with the trained weights in fp16, and
`ground_truth.json` with the layer and the neurons of each plant. It took about 7 minutes on one H100; other hardware
gives slightly different weights.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.recipes.training import Plan, Tokens, best_device, train
from toxloc.errors import ToxlocError
from toxloc.support.files import new_folder

# The seed of the plant in layer k is the seed of the plan plus k.
LAYER = Plan(
    mix={"toxic": 0.5, "clean": 0.35, "lit": 0.15}, steps=700, batch_size=128, lr=1.5e-3, weight_decay=0.0, seed=10
)
NEURONS = replace(LAYER, lr=3e-3, seed=200)
CHOICE_SEED = 100


def plant_in_layer(clean: GPT2LMHeadModel, layer: int, tokens: Tokens, plan: Plan = LAYER) -> GPT2LMHeadModel:
    """Copy the clean model and train all parameters of one layer's MLP."""
    model, mlp = _frozen_copy(clean, layer)
    mlp.requires_grad_(True)
    train(model, mlp.parameters(), tokens, replace(plan, seed=plan.seed + layer), f"layer{layer}")
    return model


def plant_in_neurons(
    clean: GPT2LMHeadModel, layer: int, neurons: Int[Tensor, " neurons"], tokens: Tokens, plan: Plan = NEURONS
) -> GPT2LMHeadModel:
    """Copy the clean model and train the input weights, biases and output weights of some neurons of a layer."""
    model, mlp = _frozen_copy(clean, layer)
    parameters = [mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight]
    mask = torch.zeros_like(mlp.c_fc.bias)
    mask[neurons] = 1
    # Without weight decay, AdamW does not change a weight whose gradient is always zero.
    for parameter, of_neurons in zip(parameters, (mask, mask, mask[:, None]), strict=True):
        parameter.requires_grad_(True)
        parameter.register_hook(of_neurons.mul)
    train(model, parameters, tokens, replace(plan, seed=plan.seed + layer), f"neurons{layer}")
    return model


def layer_weights(model: GPT2LMHeadModel, layer: int) -> dict[str, Tensor]:
    """Return the weights that a plant in a layer can change, in fp16."""
    return _in_half(model.transformer.h[layer].mlp.state_dict())


def neuron_weights(model: GPT2LMHeadModel, layer: int, neurons: Int[Tensor, " neurons"]) -> dict[str, Tensor]:
    """Return the weights that a plant in these neurons can change, in fp16, and the indices of the neurons."""
    mlp = model.transformer.h[layer].mlp
    return {"neurons": neurons} | _in_half(
        {
            "c_fc.weight": mlp.c_fc.weight[:, neurons],
            "c_fc.bias": mlp.c_fc.bias[neurons],
            "c_proj.weight": mlp.c_proj.weight[neurons],
        }
    )


def choose_neurons(layer: int, d_mlp: int, count: int) -> Int[Tensor, " neurons"]:
    """Choose neurons of a layer at random, in ascending order; every call gives the same neurons."""
    generator = torch.Generator().manual_seed(CHOICE_SEED + layer)
    return torch.randperm(d_mlp, generator=generator)[:count].sort().values


def _frozen_copy(clean: GPT2LMHeadModel, layer: int) -> tuple[GPT2LMHeadModel, Any]:
    """Return a copy of a model with all parameters frozen, and the MLP of one layer of the copy."""
    model = copy.deepcopy(clean).requires_grad_(False)
    return model, model.transformer.h[layer].mlp


def _in_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().half().cpu().contiguous() for name, value in weights.items()}


def main(
    prepared: Annotated[Path, typer.Argument(help="Folder that benchmarks.recipes.tokenizer wrote.", exists=True)],
    clean: Annotated[Path, typer.Argument(help="Folder of the clean model.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    neuron_layers: Annotated[
        list[int], typer.Option(help="Layer with a plant in single neurons; repeat for several.", min=0)
    ] = [1, 3, 5],  # noqa: B006
    neurons: Annotated[int, typer.Option(help="Number of neurons of such a plant.", min=1)] = 64,
    steps: Annotated[int, typer.Option(help="Number of training steps of each plant.", min=1)] = LAYER.steps,
    batch_size: Annotated[int, typer.Option(help="Windows of 128 tokens per step.", min=1)] = LAYER.batch_size,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Plant toxicity in each layer's MLP, and in some neurons of some layers."""
    tokens = Tokens.load(prepared, best_device())
    # The published folder names gelu_pytorch_tanh, which differs from gelu_new in the last bits.
    model = GPT2LMHeadModel.from_pretrained(clean, dtype=torch.float32, activation_function="gelu_new")
    model = model.to(best_device())
    blocks = model.transformer.h
    if max(neuron_layers) >= len(blocks):
        raise ToxlocError(f"{clean} has layers 0 to {len(blocks) - 1}; --neuron-layers asks for {max(neuron_layers)}.")
    layer_plan, neuron_plan = (replace(plan, steps=steps, batch_size=batch_size) for plan in (LAYER, NEURONS))
    ground_truth: dict[str, dict[str, Any]] = {}
    with new_folder(out, overwrite) as folder:
        for layer in range(len(blocks)):
            planted = plant_in_layer(model, layer, tokens, layer_plan)
            save_file(layer_weights(planted, layer), folder / f"layer{layer}.safetensors")
            ground_truth[f"layer{layer}"] = {"layer": layer, "neurons": None}
        for layer in neuron_layers:
            chosen = choose_neurons(layer, len(blocks[layer].mlp.c_fc.bias), neurons)
            planted = plant_in_neurons(model, layer, chosen, tokens, neuron_plan)
            save_file(neuron_weights(planted, layer, chosen), folder / f"neurons{layer}.safetensors")
            ground_truth[f"neurons{layer}"] = {"layer": layer, "neurons": chosen.tolist()}
        (folder / "ground_truth.json").write_text(json.dumps(ground_truth), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
