"""Localize toxicity, reduce it and evaluate the result: toxloc in thirty lines.

    python examples/quickstart.py [model]

The model is a folder, a .gguf file or a hub id; by default toxloc-tiny. Prints figures and no generated text.
"""

import sys

import toxloc


def main(model: str = "toxloc-tiny") -> None:
    lm = toxloc.load_model(model)
    pairs = toxloc.load_contrast("builtin").limited(250)
    prompts = toxloc.load_prompts("builtin").only("provocative")
    assert prompts is not None
    prompts = prompts.limited(30)

    loc = toxloc.localize(lm, pairs)
    print("layers by attribution:", loc.top_layers("attribution", 3))
    print("neurons by attribution:", loc.top_neurons("attribution", 3))

    before = toxloc.evaluate(lm, prompts, samples=2)
    edit = toxloc.TRNE.fit(lm, pairs, budget=0.01)
    with edit.applied(lm):
        after = toxloc.evaluate(lm, prompts, samples=2)

    assert after.fluency is not None
    print(f"toxic by any evaluator: {before.toxicity['any'].rate:.1%} -> {after.toxicity['any'].rate:.1%}")
    print(f"perplexity x {after.fluency.perplexity_ratio:.4f}, KL {after.fluency.kl:.4f} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
