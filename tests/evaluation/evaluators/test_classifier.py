import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaForSequenceClassification, XLMRobertaForSequenceClassification

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.classifier import Classifier

from .conftest import tokenizer

TEXTS = ["You are a fool", "good morning", "She painted the fence green at nine", "what", "you"]


def logits(model, text):
    """Return the logits of one text, without padding."""
    with torch.no_grad():
        return model(torch.tensor([tokenizer()(text)["input_ids"]])).logits[0].double()


def test_classes_that_exclude_each_other(save):
    folder, model = save(["neutral", "toxic"])
    judge = Classifier(folder)
    expected = [logits(model, text).softmax(0)[1].item() for text in TEXTS]
    scores = judge.score(TEXTS)
    np.testing.assert_allclose(scores["toxicity"], expected, atol=1e-6)
    np.testing.assert_allclose(scores["neutral"] + scores["toxicity"], 1, atol=1e-6)
    assert len({round(value, 4) for value in expected}) == 5
    assert judge.name == "neutral-toxic"


def test_several_toxic_classes_are_summed(save):
    folder, model = save(["normal", "hate", "offensive"])
    expected = [logits(model, text).softmax(0)[1:].sum().item() for text in TEXTS]
    np.testing.assert_allclose(Classifier(folder).score(TEXTS)["toxicity"], expected, atol=1e-6)


def test_classes_that_do_not_exclude_each_other(save):
    folder, model = save(["Hate_speech", "threat", "insult"], "multi_label_classification")
    scores = Classifier(folder).score(TEXTS)
    expected = np.array([logits(model, text).sigmoid().tolist() for text in TEXTS])
    np.testing.assert_allclose(scores["toxicity"], expected[:, [0, 2]].max(1), atol=1e-6)
    np.testing.assert_allclose(scores["threat"], expected[:, 1], atol=1e-6)
    folder, model = save(["toxic", "threat", "insult"], "multi_label_classification")
    # The class "toxic" alone decides.
    expected = [logits(model, text).sigmoid()[0].item() for text in TEXTS]
    np.testing.assert_allclose(Classifier(folder).score(TEXTS)["toxicity"], expected, atol=1e-6)


def test_given_toxic_classes_decide_also_if_a_class_is_called_toxic(save):
    folder, model = save(["toxic", "threat", "insult"], "multi_label_classification")
    expected = [logits(model, text).sigmoid()[[0, 2]].max().item() for text in TEXTS]
    scores = Classifier(folder, toxic=["toxic", "insult"]).score(TEXTS)["toxicity"]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_toxic_classes_can_be_given_and_are_needed_if_no_name_is_usual(save):
    folder, model = save(["LABEL_0", "LABEL_1"])
    with pytest.raises(ToxlocError, match=r"LABEL_0, LABEL_1.* \(toxic=\)"):
        Classifier(folder).prepare()
    with pytest.raises(ToxlocError, match=r"LABEL_0, LABEL_1.* LABEL_7"):
        Classifier(folder, toxic=["LABEL_7"]).prepare()
    judge = Classifier(folder, toxic=["LABEL_0"], name="custom")
    assert judge.name == "custom"
    np.testing.assert_allclose(judge.score(["you"])["toxicity"], logits(model, "you").softmax(0)[0].item(), atol=1e-6)


def test_long_texts_are_truncated_to_the_length_of_the_model(save):
    folder, _ = save(["neutral", "toxic"])
    scores = Classifier(folder).score(["fool " * 36 + "good " * n for n in (1, 50)])["toxicity"]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_classifier_that_cannot_be_loaded():
    with pytest.raises(ToxlocError, match=r"'no/such-classifier' .* give the folder"):
        Classifier("no/such-classifier").prepare()


def change_weights(folder, change):
    path = Path(folder) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def test_a_classifier_without_the_weights_of_its_head_is_refused(save):
    """transformers would give it a random head: this is what a folder of a model that is no classifier gives."""
    folder, _ = save(["neutral", "toxic"])
    change_weights(folder, lambda weights: weights.pop("classifier.weight"))
    with pytest.raises(ToxlocError, match=r"lacks the weights classifier\.weight"):
        Classifier(folder).prepare()


def test_a_classifier_with_weights_that_are_not_finite_is_refused(save):
    folder, _ = save(["neutral", "toxic"])
    change_weights(folder, lambda weights: weights["classifier.bias"].fill_(torch.nan))
    with pytest.raises(ToxlocError, match=r"classifier\.bias .* holds 2 values that are infinite or NaN"):
        Classifier(folder).prepare()


def test_further_weights_are_ignored(save):
    folder, model = save(["neutral", "toxic"])
    change_weights(folder, lambda weights: weights.update({"bert.embeddings.position_ids_old": torch.ones(3)}))
    expected = logits(model, "you").softmax(0)[1].item()
    assert Classifier(folder).score(["you"])["toxicity"][0] == pytest.approx(expected, abs=1e-6)


def test_code_in_a_folder_is_never_run(save, tmp_path):
    folder, _ = save(["neutral", "toxic"])
    config = Path(folder) / "config.json"
    names = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "own", "auto_map": names}))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass"
    (Path(folder) / "code.py").write_text(code)
    with pytest.raises(ToxlocError, match=r"brings its own code .* which toxloc never runs"):
        Classifier(folder).prepare()
    assert not (tmp_path / "ran").exists()


def test_results_tell_classifiers_of_one_name_apart_by_their_weights(save):
    folder, _ = save(["neutral", "toxic"])
    first = Classifier(folder)
    first.prepare()
    change_weights(folder, lambda weights: weights["classifier.bias"].add_(1))
    second = Classifier(folder)
    second.prepare()
    assert first.about()["weights"] != second.about()["weights"]
    assert first.about() | {"weights": None} == second.about() | {"weights": None}


@pytest.mark.parametrize("make", [RobertaForSequenceClassification, XLMRobertaForSequenceClassification])
def test_classifiers_with_the_architectures_of_roberta(make, tmp_path):
    """The published classifiers of s-nlp and textdetox have these architectures; positions begin after the padding."""
    torch.manual_seed(0)
    config = make.config_class(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=42,
        pad_token_id=0,
        initializer_range=1.0,
        num_labels=2,
        id2label={0: "neutral", 1: "toxic"},
    )
    model = make(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    judge = Classifier(str(tmp_path), languages=["en", "de"])
    expected = [logits(model, text).softmax(0)[1].item() for text in TEXTS]
    np.testing.assert_allclose(judge.score(TEXTS)["toxicity"], expected, atol=1e-6)
    assert judge.about()["languages"] == ["en", "de"]
