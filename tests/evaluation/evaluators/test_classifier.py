import numpy as np
import pytest
import torch

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.classifier import Classifier

from .conftest import tokenizer

TEXTS = ["You are a fool", "good morning", "She painted the fence green at nine", "what", "you"]


def logits(model, text):
    """One text at a time, without padding."""
    with torch.no_grad():
        return model(torch.tensor([tokenizer()(text)["input_ids"]])).logits[0].double()


def test_classes_that_exclude_each_other(save):
    folder, model = save(["neutral", "toxic"])
    judge = Classifier(folder)
    expected = [logits(model, text).softmax(0)[1].item() for text in TEXTS]
    found = judge.score(TEXTS)
    np.testing.assert_allclose(found["toxicity"], expected, atol=1e-6)
    np.testing.assert_allclose(found["neutral"] + found["toxicity"], 1, atol=1e-6)
    assert len({round(one, 4) for one in expected}) == 5
    assert judge.name == "neutral-toxic"


def test_of_several_toxic_classes_the_sum(save):
    folder, model = save(["normal", "hate", "offensive"])
    expected = [logits(model, text).softmax(0)[1:].sum().item() for text in TEXTS]
    np.testing.assert_allclose(Classifier(folder).score(TEXTS)["toxicity"], expected, atol=1e-6)


def test_several_classes_may_apply(save):
    folder, model = save(["Hate_speech", "threat", "insult"], "multi_label_classification")
    found = Classifier(folder).score(TEXTS)
    each = np.array([logits(model, text).sigmoid().tolist() for text in TEXTS])
    np.testing.assert_allclose(found["toxicity"], each[:, [0, 2]].max(1), atol=1e-6)
    np.testing.assert_allclose(found["threat"], each[:, 1], atol=1e-6)
    folder, model = save(["toxic", "threat", "insult"], "multi_label_classification")  # a class that says it all
    expected = [logits(model, text).sigmoid()[0].item() for text in TEXTS]
    np.testing.assert_allclose(Classifier(folder).score(TEXTS)["toxicity"], expected, atol=1e-6)


def test_toxic_classes_can_be_given_and_must_be_if_no_name_is_usual(save):
    folder, model = save(["LABEL_0", "LABEL_1"])
    with pytest.raises(ToxlocError, match="has the classes LABEL_0, LABEL_1; say which of them mean toxic"):
        Classifier(folder).prepare()
    with pytest.raises(ToxlocError, match="none is called LABEL_7"):
        Classifier(folder, toxic=["LABEL_7"]).prepare()
    found = Classifier(folder, toxic=["LABEL_0"], name="odd")
    assert found.name == "odd"
    np.testing.assert_allclose(found.score(["you"])["toxicity"], logits(model, "you").softmax(0)[0].item(), atol=1e-6)


def test_long_texts_are_cut_to_the_models_length(save):
    folder, _ = save(["neutral", "toxic"])
    scores = Classifier(folder).score(["fool " * 36 + "good " * n for n in (1, 50)])["toxicity"]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_classifier_that_cannot_be_loaded():
    with pytest.raises(ToxlocError, match="download it on a connected machine and give the folder"):
        Classifier("no/such-classifier").prepare()
