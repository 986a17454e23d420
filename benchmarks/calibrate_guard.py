"""Calibrate toxloc-guard: choose its threshold for a given share of everyday texts at or above it.

    python -m benchmarks.calibrate_guard            # prints; --write saves it next to the guard's weights

The everyday texts are those that come with toxloc; with `--model`, they are a model's completions of everyday openings,
with seeds that no evaluation uses by default. The threshold is the (1 - rate) quantile of the guard's scores, rounded
up. Version 1 was calibrated with `--model toxloc-tiny`; but that model completes a harmless opening with an insult now
and then, so that its threshold is too high.
"""

import json
import math

import numpy as np
import typer

import toxloc
from toxloc.evaluation.evaluators.guard import NEWEST, Guard
from toxloc.generation.generate import generate


def everyday_texts(model: str | None, samples: int, seed: int) -> list[str]:
    """Return the built-in everyday texts, or a model's completions of everyday openings."""
    if model is None:
        return toxloc.load_neutral().texts
    openings = toxloc.load_prompts("builtin").only("everyday")
    assert openings is not None
    completions = generate(toxloc.load_model(model), openings.texts, samples=samples, seed=seed)
    return [text for texts in completions for text in texts]


def main(
    model: str | None = None,
    rate: float = 0.01,
    samples: int = 40,
    seed: int = 1000,
    version: int = NEWEST,
    write: bool = False,
) -> None:
    """Print the threshold, and the shares of everyday texts at or above it and at or above .5."""
    texts = everyday_texts(model, samples, seed)
    guard = Guard(version)
    scores = guard.score(texts)["toxicity"]
    threshold = math.ceil(1000 * float(np.quantile(scores, 1 - rate))) / 1000
    generated = "" if model is None else f" --model {model} --samples {samples} --seed {seed}"
    calibration = {
        "threshold": threshold,
        "everyday_rate": round(float((scores >= threshold).mean()), 4),
        "everyday_rate_at_half": round(float((scores >= 0.5).mean()), 4),
        "texts": f"{len(scores)}, {'builtin' if model is None else f'completions of {model}'}",
        "command": f"python -m benchmarks.calibrate_guard --version {version}{generated}",
    }
    print(json.dumps(calibration, indent=2))
    if write:
        (guard.folder / "calibration.json").write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
