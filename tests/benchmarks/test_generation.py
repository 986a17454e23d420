import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import generation
from toxloc.generation.decoding import Decoding
from toxloc.generation.generate import sample


def test_tokens_are_counted_up_to_the_end_token(lm):
    """All contenders count in the same way; here every second token of the vocabulary is an end token."""
    config = lm.hf.generation_config
    ends, config.eos_token_id = config.eos_token_id, list(range(0, lm.hf.config.vocab_size, 2))
    try:
        torch.manual_seed(0)
        counted = {
            name: contender(lm, ["You are", "The soup"], 64, 4) for name, contender in generation.CONTENDERS.items()
        }
        assert counted["toxloc"] == sum(
            completion.n_tokens
            for completion in sample(lm, ["You are", "The soup"], Decoding(samples=64, max_new_tokens=4))
        )
    finally:
        config.eos_token_id = ends
    assert all(128 < count < 4 * 128 for count in counted.values())
    assert max(counted.values()) < 1.3 * min(counted.values())


def test_ratios_are_taken_within_a_round():
    rounds = [
        {
            "toxloc": {"seconds": 1.0, "tokens": 300},
            "loop of hf.generate": {"seconds": 3.0, "tokens": 300},
            "one batch of hf.generate": {"seconds": 2.0, "tokens": 200},
        },
        {
            "toxloc": {"seconds": 4.0, "tokens": 300},
            "loop of hf.generate": {"seconds": 8.0, "tokens": 300},
            "one batch of hf.generate": {"seconds": 4.0, "tokens": 300},
        },
    ]
    summary = generation.summarised(rounds)
    assert summary["loop of hf.generate"] == {
        "tokens_per_second": pytest.approx(68.75),
        "toxloc_is_faster_by": 2.5,
        "range": [2.0, 3.0],
    }
    assert summary["toxloc"]["toxloc_is_faster_by"] == 1


def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(generation.main)
    done = CliRunner().invoke(
        app,
        [
            "--max-prompts",
            "2",
            "--samples",
            "2",
            "--max-new-tokens",
            "3",
            "--repeats",
            "1",
            "--out",
            str(tmp_path / "out.json"),
        ],
        env={"COLUMNS": "160"},
    )
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "out.json").read_text())
    assert set(saved["contenders"]) == set(generation.CONTENDERS)
    assert len(saved["rounds"]) == 1
    assert "loop of hf.generate" in done.output
