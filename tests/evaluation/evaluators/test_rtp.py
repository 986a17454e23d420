import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from toxloc import load_neutral
from toxloc.evaluation.evaluators.registry import get_evaluators
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, FOLDER, RTPJudge, predictor
from toxloc.evaluation.evaluators.spelling import Spelling

TERMS = {"words": ["bad", "good"], "letters": [" b", "ba", "oo"], "masked": ["bad"]}


def tensors(**changed):
    straight = np.repeat(np.array([[0.0], [1.0]])[None], 2, axis=2).astype(np.float32)
    return {
        "idf": np.array([1, 2, 1, 1, 1], np.float32),
        "weights": np.array([[2, 0], [-2, 1], [0, 0], [0, 0], [0, 3]], np.float16),
        "bias": np.array([0.5, 0], np.float32),
        "knots": np.concatenate([straight, straight]),
    } | changed


@pytest.fixture(scope="module")
def judge():
    return get_evaluators(["toxloc-rtp"])[0]


def test_a_score_worked_out_by_hand():
    predict = predictor(tensors(), TERMS)
    scores = predict(["bad", "good", "nothing"])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    # Each part has length 1: "bad" is the only word, and its letters " b", "ba" have no weight; "good" has "oo".
    assert scores[:, 0] == pytest.approx([sigmoid(2.5), sigmoid(-1.5), sigmoid(0.5)], abs=1e-3)
    assert scores[:, 1] == pytest.approx([0.5, sigmoid(4.0), 0.5], abs=1e-3)


def test_the_network_adds_to_the_logits():
    """Only "bad" has a vector, (1, 2); the first hidden number is 1 - 2 + .5 < 0, the second 3 - 1 = 2."""
    network = {
        "embedding": np.array([[1, 2], [0, 0], [0, 0], [0, 0], [0, 0]], np.float16),
        "hidden": np.array([[1, 1], [-1, 1]], np.float32),
        "hidden_bias": np.array([0.5, -1], np.float32),
        "out": np.array([[7, 0], [0.25, -1]], np.float32),
    }
    bad, good = predictor(tensors(**network), TERMS)(["bad", "good"])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    assert bad == pytest.approx([sigmoid(2.5 + 0.5), sigmoid(-2)], abs=1e-3)
    assert good == pytest.approx([sigmoid(-1.5 + 3.5), sigmoid(4)], abs=1e-3)  # relu(.5) of the bias, times 7


def test_the_correction_is_applied_by_attribute():
    knots = np.array([[[0, 0], [0.5, 0.5], [1, 1]], [[0, 0], [0.1, 0.5], [1, 1]]], np.float32)
    scores = predictor(tensors(bias=np.zeros(2, np.float32), knots=knots), TERMS)(["nothing"])
    assert scores[0] == pytest.approx([0.1, 0.5])


def test_disguised_words_are_read():
    predict = predictor(tensors(), TERMS)
    plain, *disguised = predict(["bad", "b@d", "b a d", "baaad", "b*d"])
    assert all(row == pytest.approx(plain) for row in disguised)


def test_every_attribute_is_scored(judge):
    insult, threat, kind = "You are a stupid idiot.", "I will kill you tonight.", "Thank you for the lovely soup."
    scores = judge.score([insult, threat, kind])
    assert tuple(scores) == judge.labels == ATTRIBUTES
    assert scores["toxicity"][0] > judge.threshold > 0.3 > scores["toxicity"][2]
    assert scores["insult"][0] > scores["insult"][1]
    assert scores["threat"][1] > scores["threat"][0]


def test_everyday_texts_are_not_toxic(judge):
    texts = load_neutral().texts
    assert (judge.score(texts)["toxicity"] >= judge.threshold).mean() <= 0.01


def test_the_figures_of_the_cross_validation_reach_what_they_should():
    about = json.loads((FOLDER / "model.json").read_text())
    toxicity = about["cross_validation"]["attributes"]["toxicity"]
    assert toxicity["spearman"] > 0.8
    assert toxicity["auroc"] > 0.93
    assert toxicity["calibration_error"] < 0.03
    tricks = about["cross_validation"]["tricks"]
    assert all(tricks[trick] > tricks["none"] - 0.1 for trick in tricks if trick != "texts")


def test_the_files_are_small_and_have_no_pickle(judge):
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {"README.md", "model.json", "model.safetensors", "terms.json"}
    assert sum(files.values()) < 6e6
    weights, terms = load_file(FOLDER / "model.safetensors"), json.loads((FOLDER / "terms.json").read_text())
    assert weights["weights"].shape == (len(terms["words"]) + len(terms["letters"]), len(ATTRIBUTES))
    assert len(judge.weights) == 64


def test_the_card_says_what_it_was_trained_on():
    about = RTPJudge().about()
    assert "RealToxicityPrompts" in about["trained_on"] and "implicit hate" in about["blind_to"]
    assert about["calibration"]["everyday_rate"] <= 0.01


def test_masked_words_are_words_that_weigh_much(judge):
    terms = json.loads((FOLDER / "terms.json").read_text())
    assert len(terms["masked"]) == 400 and set(terms["masked"]) <= set(terms["words"])
    assert Spelling(terms["words"], terms["masked"]).repaired("what an id**t") == "what an idiot"
