"""Detoxify a model folder: fit TRNE to a budget, evaluate before and after, and write a folder that needs no toxloc.

    python examples/detoxify_folder.py path/to/model detoxified [budget]

Prints figures and no generated text.
"""

import sys

import toxloc


def main(model: str, out: str, budget: str = "0.01") -> None:
    lm = toxloc.load_model(model)
    prompts = toxloc.load_prompts().only("provocative")
    assert prompts is not None
    prompts = prompts.limited(40)
    pairs = toxloc.load_contrast().without(prompts.texts).limited(200)
    edit = toxloc.TRNE.fit(lm, pairs, budget=float(budget))
    before = toxloc.evaluate(lm, prompts, samples=2)
    with edit.applied(lm):
        after = toxloc.evaluate(lm, prompts, samples=2)
        toxloc.export_hf(lm, out, effect={"before": before.to_dict(), "after": after.to_dict()})
    assert after.fluency is not None
    print(
        f"toxic by any evaluator: {before.toxicity['any'].rate:.1%} -> {after.toxicity['any'].rate:.1%}, "
        f"perplexity x {after.fluency.perplexity_ratio:.4f}; written to {out}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
