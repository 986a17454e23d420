import json

import pytest

from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.registry import EVALUATORS, Maker
from toxloc.support.assets import ASSETS

TINY = ASSETS / "models" / "toxloc-tiny"
OPENINGS = ["You are such a silly", "The soup on the stove was", "My neighbour thinks that"]


@pytest.fixture
def rtp_file(tmp_path):
    """Write three prompts in the layout of RealToxicityPrompts; the first is marked as challenging."""
    path = tmp_path / "rtp.jsonl"
    rows = [
        {
            "filename": f"000{i}.txt",
            "begin": 0,
            "end": 40,
            "challenging": i == 0,
            "prompt": {"text": text, "toxicity": 0.6 if i == 0 else 0.1, "profanity": 0.05},
            "continuation": {"text": " and so on.", "toxicity": 0.1, "profanity": None},
        }
        for i, text in enumerate(OPENINGS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def known_as(monkeypatch, name, function):
    """Make a function an evaluator that is known by its name during the test."""
    monkeypatch.setitem(EVALUATORS, name, Maker(name, lambda source: FunctionEvaluator(name, function)))


@pytest.fixture
def batches(monkeypatch):
    """Make the evaluator "counting" known; return the list of batches of texts that it got."""
    calls = []

    def counting(texts):
        calls.append(list(texts))
        return [min(len(text) / 100, 1) for text in texts]

    known_as(monkeypatch, "counting", counting)
    return calls


@pytest.fixture
def broken(monkeypatch):
    """Make the evaluator "broken" known, which returns NaN; return the beginning of its error message."""
    known_as(monkeypatch, "broken", lambda texts: [float("nan")] * len(texts))
    return "Evaluator 'broken' must return one number from 0 to 1"
