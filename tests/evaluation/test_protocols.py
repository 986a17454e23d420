import dataclasses
import json
import math

import pytest

from toxloc import PROTOCOLS, ToxlocError, evaluate, load_prompts
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.protocols import get_protocol

NEUTRAL = ["A quiet evening at home with soup.", "The train left at nine."]
HAS_E = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in t) for t in texts])


@pytest.fixture
def rows(tmp_path):
    """Return a file in RealToxicityPrompts' layout, with toxic, challenging and other prompts."""
    prompts = [
        ("You utter", 0.9, True),
        ("You silly", 0.6, False),
        ("He said", 0.3, True),
        ("The soup", 0.1, False),
        ("One two three four five six seven " * 6, 0.8, True),
        ("A walk", 0.2, False),
    ]
    path = tmp_path / "rtp.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": {"text": text, "toxicity": toxicity},
                    "challenging": challenging,
                    "continuation": {"text": " on.", "toxicity": 0.1},
                }
            )
            + "\n"
            for text, toxicity, challenging in prompts
        )
    )
    return str(path)


def test_protocols_match_the_papers():
    """Prompts, samples, tokens, top_p and temperature are those of the papers."""
    protocols = {
        name: (p.which, p.decoding.samples, p.decoding.max_new_tokens, p.decoding.top_p, p.decoding.temperature)
        for name, p in PROTOCOLS.items()
    }
    assert protocols == {
        "RealToxicityPrompts": ("all", 25, 20, 0.9, 1.0),
        "DExperts": ("nontoxic", 25, 20, 0.9, 1.0),
        "ml-aura": ("all", 25, 20, 1.0, 1.0),
        "ml-act": ("all", 1, 32, 0.3, 1.0),
        "dpo_toxic": ("challenging", 1, 20, 0.9, 0.0),
        "ProFS": ("challenging", 1, 10, 0.9, 0.0),
    }
    assert PROTOCOLS["ml-act"].decoding.repetition_penalty == 1.2
    assert get_protocol("DPO-Toxic") is PROTOCOLS["dpo_toxic"]
    with pytest.raises(ToxlocError, match=r"'rtp'.* RealToxicityPrompts, DExperts"):
        get_protocol("rtp")


def test_long_prompts_are_dropped_and_the_number_of_prompts_is_limited(lm, rows):
    assert PROTOCOLS["dpo_toxic"].load(rows, lm).texts == ["You utter", "He said"]
    assert len(PROTOCOLS["ProFS"].load(rows, lm)) == 3
    assert len(PROTOCOLS["ProFS"].load(rows, lm, max_prompts=2)) == 2


def test_a_protocol_fixes_the_decoding_and_is_named_in_results(lm, rows):
    protocol = PROTOCOLS["dpo_toxic"]
    result = evaluate(lm, protocol.load(rows, lm), [HAS_E], protocol="dpo_toxic", neutral=NEUTRAL)
    assert result.to_dict()["protocol"] == "dpo_toxic/1"
    assert result.decoding == protocol.decoding
    assert len(result.completions[0]) == 1
    assert result.protocol_fluency == {"perplexity, text": pytest.approx(math.exp(mean_nll(lm, NEUTRAL)))}
    custom = dataclasses.replace(protocol, name="custom", fluency=None)  # a user's protocol
    assert evaluate(lm, protocol.load(rows, lm), [HAS_E], protocol=custom, neutral=NEUTRAL).protocol == "custom/1"
    with pytest.raises(ToxlocError, match=r"dpo_toxic fixes temperature=0\.0; omit temperature=1\.0"):
        evaluate(lm, protocol.load(rows, lm), [HAS_E], protocol="dpo_toxic", temperature=1.0)


def test_a_protocol_can_use_the_highest_score_of_all_labels(lm):
    class Two(FunctionEvaluator):
        labels = ("toxicity", "threat")

        def _score(self, texts):
            return {"toxicity": [0.1 for _ in texts], "threat": [0.9 * ("e" in text) for text in texts]}

    two = Two("two", lambda texts: [])
    prompts = load_prompts().limited(3)
    plain = evaluate(lm, prompts, [two], samples=1, temperature=0.0, fluency=False)
    assert plain.toxicity["two"].rate == 0
    assert list(plain.categories["two"]) == ["toxicity", "threat"]
    assert plain.categories["two"]["threat"].rate > 0
    highest = evaluate(lm, prompts, [two], protocol="dpo_toxic", fluency=False)
    assert highest.toxicity["two"].rate == plain.categories["two"]["threat"].rate
