"""The same seed gives the same numbers in another process; with another number of threads, nearly the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, sys
import torch
import toxloc
from toxloc.generation.generate import generate

torch.set_num_threads(int(sys.argv[1]))
lm = toxloc.load_model("toxloc-tiny")
pairs = toxloc.load_contrast("builtin").limited(60, seed=1)
loc = toxloc.localize(lm, pairs, ("activation", "gradient_norm", "attribution"), seed=0)
edit = toxloc.TRNE.fit(lm, pairs, neutral=toxloc.load_neutral("builtin", limit=40), budget=0.01)
openings = toxloc.load_prompts("builtin").only("provocative").sampled(10).texts
with edit.applied(lm):
    completions = generate(lm, openings, samples=4, seed=3)
print(json.dumps({
    "layers": {name: values.tolist() for name, values in loc.layers.items()},
    "neurons": {name: values.tolist() for name, values in loc.neurons.items()},
    "low": {name: uncertainty.low.tolist() for name, uncertainty in loc.uncertainty.items()},
    "strength": edit.record["strength"],
    "completions": completions,
}))
"""


def results(threads, hash_seed):
    """Start a process and return a function that waits for its results."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(threads)], env=environment, stdout=subprocess.PIPE, text=True
    )

    def wait():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return json.loads(output)

    return wait


@pytest.mark.slow
def test_another_process_gives_the_same_and_another_number_of_threads_nearly_the_same():
    """Threads divide sums differently, so the last bits differ; a completion differs if they decide between tokens."""
    first, second = results(1, 1), results(1, 2)
    first, second = first(), second()
    assert first == second
    threads = results(2, 1)()
    for part in ("layers", "neurons", "low"):
        for name, values in first[part].items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(threads[part][name], values, rtol=0, atol=1e-4 * scale)
    assert threads["strength"] == pytest.approx(first["strength"], rel=1e-3)
    before, after = (np.array(result["completions"]) for result in (first, threads))
    assert before.shape == (10, 4)
    assert (before == after).mean() >= 0.95
