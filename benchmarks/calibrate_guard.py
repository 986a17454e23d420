"""Calibrate toxloc-guard: choose its threshold for a given share of everyday completions at or above it.

    python -m benchmarks.calibrate_guard            # prints; --write saves it next to the guard's weights

A model (toxloc-tiny by default) completes everyday openings, with seeds that no evaluation uses by default. The
threshold is the (1 - rate) quantile of the guard's scores of these completions.
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
    """Print the threshold, and the shares of everyday completions at or above it and at or above .5."""
    openings = toxloc.load_prompts("builtin").only("everyday")
    assert openings is not None
    completions = generate(toxloc.load_model(model), openings.texts, samples=samples, seed=seed)
    scores = Guard().score([text for samples_of_prompt in completions for text in samples_of_prompt])["toxicity"]
    threshold = round(float(np.quantile(scores, 1 - rate)), 3)
    calibration = {
        "threshold": threshold,
        "everyday_rate": round(float((scores >= threshold).mean()), 4),
        "everyday_rate_at_half": round(float((scores >= 0.5).mean()), 4),
        "completions": len(scores),
        "model": model,
        "command": f"python -m benchmarks.calibrate_guard --model {model} --samples {samples} --seed {seed}",
    }
    print(json.dumps(calibration, indent=2))
    if write:
        (FOLDER / "calibration.json").write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
