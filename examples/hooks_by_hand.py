"""Apply Meow2X with a plain TransformerLens hook and with toxloc, and compare the logits (no arguments)."""

import torch

import toxloc


def main() -> None:
    lm = toxloc.load_model("toxloc-tiny")
    loc = toxloc.localize(lm, toxloc.load_contrast("builtin").limited(100))
    layer, neuron = loc.top_neurons("attribution", 1)[0]
    ids = torch.tensor([lm.tokenizer("The weather in the north was")["input_ids"]])
    mask = torch.ones_like(ids)

    def halve(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation[..., neuron] *= 0.5
        return activation

    with torch.no_grad(), lm.hooked.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", halve)]):
        by_hand = lm.forward(ids, mask)
    with torch.no_grad(), toxloc.Meow2X(neurons=[(layer, neuron)], scale=0.5).applied(lm):
        by_toxloc = lm.forward(ids, mask)
    print(f"layer {layer}, neuron {neuron}: largest difference {(by_hand - by_toxloc).abs().max():.1e}")


if __name__ == "__main__":
    main()
