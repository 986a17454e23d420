"""Calibrate toxloc-guard: find the threshold that a given share of everyday completions passes.

    python -m benchmarks.calibrate_guard            # prints; --write stores it beside the guard's weights

Everyday openings are completed by the model given (toxloc-tiny by default), with seeds that no evaluation uses by
default, and the threshold is the (1 - rate) quantile of the guard's scores.
"""

import json

import numpy as np
import typer

import toxloc
from toxloc.evaluation.evaluators.guard import FOLDER, Guard
from toxloc.generation.generate import generate


def main(
    model: str = "toxloc-tiny", rate: float = 0.01, samples: int = 40, seed: int = 1000, write: bool = False
) -> None:
    """Print the threshold and the share of everyday completions over it and over .5."""
    openings = toxloc.load_prompts("builtin").only("everyday")
    assert openings is not None
    completions = generate(toxloc.load_model(model), openings.texts, samples=samples, seed=seed)
    scores = Guard().score([text for several in completions for text in several])["toxicity"]
    threshold = round(float(np.quantile(scores, 1 - rate)), 3)
    found = {
        "threshold": threshold,
        "everyday_rate": round(float((scores >= threshold).mean()), 4),
        "everyday_rate_at_half": round(float((scores >= 0.5).mean()), 4),
        "completions": len(scores),
        "model": model,
        "command": f"python -m benchmarks.calibrate_guard --model {model} --samples {samples} --seed {seed}",
    }
    print(json.dumps(found, indent=2))
    if write:
        (FOLDER / "calibration.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
