import json

import pytest

from tests.conftest import random_hf, tokenizer
from toxloc.sweeps.grid import Plan, grid_of


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Write two random models, two files of prompts and a file of contrast texts to a folder."""
    root = tmp_path_factory.mktemp("grid")
    for seed, family in enumerate(("gpt2", "llama")):
        random_hf(family, seed=seed).save_pretrained(root / family)
        tokenizer().save_pretrained(root / family)
    openings = [f"Number {i} said that it" for i in range(12)]
    (root / "first.txt").write_text("\n".join(openings[:6]))
    (root / "second.txt").write_text("\n".join(openings[6:]))
    rows = [
        {"toxic": f"you are fool number {i} and a liar", "neutral": f"you are guest number {i} and a friend"}
        for i in range(12)
    ]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def small_grid():
    """Return the content of a grid file with twelve cells."""
    return {
        "models": ["gpt2", "llama"],
        "contrasts": ["pairs.jsonl"],
        "benchmarks": {"one": {"prompts": "first.txt"}, "two": {"prompts": "second.txt"}},
        "methods": [
            {"method": "meow2x", "settings": {"budget": 0.05, "scale": [0.5, 0.0]}},
            {"method": "trne", "settings": {"budget": 0.05}},
        ],
        "evaluators": ["profanity-check", "toxloc-guard"],
        "samples": 2,
        "max_new_tokens": 4,
        "max_neutral": 24,
        "resources": {"cpus": 1},
    }


@pytest.fixture
def content():
    return small_grid()


@pytest.fixture
def plan(folder, content):
    return Plan(grid_of(content), folder)
