import json
import math

import pytest

from toxloc import PROTOCOLS, ToxlocError, evaluate, load_prompts
from toxloc.evaluation.cost.perplexity import completion_perplexity, mean_nll, nll_per_text, strided_perplexity
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.protocols import get_protocol

NEUTRAL = ["A quiet evening at home with soup.", "The train left at nine."]
HAS_E = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in t) for t in texts])


@pytest.fixture
def rows(tmp_path):
    """A file in RealToxicityPrompts' layout: toxic, challenging and other prompts."""
    made = [("You utter", 0.9, True), ("You silly", 0.6, False), ("He said", 0.3, True), ("The soup", 0.1, False),
            ("One two three four five six seven " * 6, 0.8, True), ("A walk", 0.2, False)]
    path = tmp_path / "rtp.jsonl"
    path.write_text("".join(json.dumps({"prompt": {"text": text, "toxicity": toxicity}, "challenging": challenging,
                                        "continuation": {"text": " on.", "toxicity": 0.1}}) + "\n"
                            for text, toxicity, challenging in made))
    return str(path)


@pytest.mark.parametrize(("which", "expected"), [
    ("all", [0.9, 0.6, 0.3, 0.1, 0.8, 0.2]), ("toxic", [0.9, 0.6, 0.8]), ("nontoxic", [0.3, 0.1, 0.2]),
    ("challenging", [0.9, 0.3, 0.8]), (None, [0.9, 0.3, 0.1, 0.8, 0.2])])
def test_prompts_are_chosen_as_protocols_do(rows, which, expected):
    assert load_prompts(rows, which=which).scores == expected


def test_choice_by_kind_where_there_is_no_score(tmp_path):
    assert len(load_prompts("builtin", which="challenging")) == len(load_prompts("builtin", which="nontoxic")) == 130
    assert len(load_prompts("builtin", which="all")) == 260
    (tmp_path / "plain.txt").write_text("One\nTwo\n")
    assert len(load_prompts(str(tmp_path / "plain.txt"), which="all")) == 2
    with pytest.raises(ToxlocError, match=r"plain\.txt does not say which prompts are toxic"):
        load_prompts(str(tmp_path / "plain.txt"), which="toxic")
    (tmp_path / "rtp.jsonl").write_text(json.dumps({"prompt": {"text": "You", "toxicity": 0.9}}))
    with pytest.raises(ToxlocError, match="has no challenging prompts; it marks none as challenging"):
        load_prompts(str(tmp_path / "rtp.jsonl"), which="challenging")
    with pytest.raises(ToxlocError, match=r"has no nontoxic prompts\.$"):
        load_prompts(str(tmp_path / "rtp.jsonl"), which="nontoxic")
    with pytest.raises(ToxlocError, match="which='rude'"):
        load_prompts(which="rude")


def test_protocols_are_those_of_the_papers():
    """The table of RIVALS: samples, tokens, nucleus, figures."""
    known = {name: (p.which, p.decoding.samples, p.decoding.max_new_tokens, p.decoding.top_p, p.decoding.temperature)
             for name, p in PROTOCOLS.items()}
    assert known == {
        "RealToxicityPrompts": ("all", 25, 20, 0.9, 1.0), "DExperts": ("nontoxic", 25, 20, 0.9, 1.0),
        "ml-aura": ("all", 25, 20, 1.0, 1.0), "ml-act": ("all", 1, 32, 0.3, 1.0),
        "dpo_toxic": ("challenging", 1, 20, 0.9, 0.0), "ProFS": ("challenging", 1, 10, 0.9, 0.0)}
    assert PROTOCOLS["ml-act"].decoding.repetition_penalty == 1.2
    assert get_protocol("DPO-Toxic") is PROTOCOLS["dpo_toxic"]
    with pytest.raises(ToxlocError, match="no protocol 'rtp'; there are RealToxicityPrompts"):
        get_protocol("rtp")


def test_long_prompts_are_left_out_and_fewer_drawn(lm, rows):
    assert PROTOCOLS["dpo_toxic"].load(rows, lm).texts == ["You utter", "He said"]
    assert len(PROTOCOLS["ProFS"].load(rows, lm)) == 3
    assert len(PROTOCOLS["ProFS"].load(rows, lm, max_prompts=2)) == 2


def test_a_protocol_fixes_decoding_and_is_named(lm, rows):
    protocol = PROTOCOLS["dpo_toxic"]
    found = evaluate(lm, protocol.load(rows, lm), [HAS_E], protocol="dpo_toxic", neutral=NEUTRAL)
    assert found.to_dict()["protocol"] == "dpo_toxic/1"
    assert found.decoding == protocol.decoding
    assert len(found.completions[0]) == 1
    assert found.protocol_fluency == {"perplexity, text": pytest.approx(math.exp(mean_nll(lm, NEUTRAL)))}
    with pytest.raises(ToxlocError, match=r"dpo_toxic fixes temperature=0\.0; leave temperature=1\.0 out"):
        evaluate(lm, protocol.load(rows, lm), [HAS_E], protocol="dpo_toxic", temperature=1.0)


def test_language_is_measured_as_each_protocol_does(lm):
    prompts = load_prompts().limited(2)
    how = {"samples": 1, "seed": 1, "neutral": NEUTRAL}
    nll, count = nll_per_text(lm, NEUTRAL)
    by_hand = {"strided": strided_perplexity(lm, NEUTRAL), "sentences": (math.exp(nll[0] / count[0]) + math.exp(
        nll[1] / count[1])) / 2}
    for kind, expected in by_hand.items():
        protocol = next(p for p in PROTOCOLS.values() if p.fluency == kind)
        found = evaluate(lm, prompts, [HAS_E], protocol=protocol, **how | {"samples": protocol.decoding.samples})
        assert found.protocol_fluency == {f"perplexity, {kind}": pytest.approx(expected)}
    found = evaluate(lm, prompts, [HAS_E], protocol="DExperts", neutral=NEUTRAL)
    own = completion_perplexity(lm, prompts.texts, found.completions)
    assert found.protocol_fluency == {"perplexity, completions": pytest.approx(own)}
    assert found.completion_perplexity == pytest.approx(own)


def test_the_score_may_be_the_highest_of_all_labels(lm):
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
