import shutil

import numpy as np
import pytest
import torch

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.detoxify import Detoxify
from toxloc.evaluation.evaluators.registry import get_evaluators

from .conftest import JIGSAW, classifier, tokenizer

TEXTS = ["You are a fool", "good morning", "She painted the fence green at nine"]
NAMES = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]


def by_hand(model):
    with torch.no_grad():
        return np.array(
            [model(torch.tensor([tokenizer()(text)["input_ids"]])).logits[0].sigmoid().tolist() for text in TEXTS]
        )


@pytest.fixture
def checkpoint(save, tmp_path):
    """Return a checkpoint in Detoxify's layout, the folder of the model that it was trained from, and the model."""
    base, _ = save(["a", "b"], seed=3)
    model = classifier(JIGSAW, None, seed=5)
    path = tmp_path / "toxic_original.ckpt"
    torch.save(
        {
            "config": {
                "arch": {
                    "type": "get_model_and_tokenizer",
                    "args": {
                        "num_classes": 6,
                        "model_type": "no-such/base-model",
                        "model_name": "BertForSequenceClassification",
                        "tokenizer_name": "BertTokenizer",
                    },
                },
                "dataset": {"args": {"classes": JIGSAW}},
            },
            "state_dict": model.state_dict(),
        },
        path,
    )
    return str(path), base, model


def test_a_checkpoint_of_detoxify(checkpoint):
    path, base, model = checkpoint
    judge = Detoxify("original", path, base=base)
    assert judge.name == "detoxify-original"
    scores, expected = judge.score(TEXTS), by_hand(model)
    assert list(scores) == NAMES
    for i, name in enumerate(NAMES):
        np.testing.assert_allclose(scores[name], expected[:, i], atol=1e-6)


def test_a_folder_of_transformers(save):
    folder, model = save(JIGSAW, "single_label_classification")  # some folders have this wrong type
    judge = get_evaluators([f"detoxify-unbiased={folder}@0.8"])[0]
    assert (judge.name, judge.threshold) == ("detoxify-unbiased", 0.8)
    np.testing.assert_allclose(np.stack(list(judge.score(TEXTS).values()), 1), by_hand(model), atol=1e-6)


def test_the_score_is_the_probability_of_the_class_toxicity_alone(save):
    folder, model = save(JIGSAW, "multi_label_classification")
    np.testing.assert_allclose(Detoxify("original", folder).score(TEXTS)["toxicity"], by_hand(model)[:, 0], atol=1e-6)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("evil").touch, ())

    torch.save({"config": Evil(), "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(ToxlocError, match="give the folder"):
        Detoxify("original", str(tmp_path / "evil.ckpt")).prepare()
    assert not (tmp_path / "evil").exists()


def test_checkpoints_that_cannot_be_loaded(tmp_path, checkpoint):
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ToxlocError, match=r"other\.ckpt.* has no 'config'"):
        Detoxify("original", str(tmp_path / "other.ckpt")).prepare()
    with pytest.raises(ToxlocError, match=r"'big'.* original, unbiased, multilingual"):
        Detoxify("big")
    path, _, _ = checkpoint
    with pytest.raises(ToxlocError, match=r"no-such/base-model.* config\.json .* folder of the checkpoint"):
        Detoxify("original", path).prepare()


def test_the_base_can_be_in_the_folder_of_the_checkpoint(checkpoint):
    path, base, model = checkpoint
    moved = shutil.copy(path, base)
    scores = get_evaluators([f"detoxify-original={moved}"])[0].score(TEXTS)["toxicity"]
    np.testing.assert_allclose(scores, by_hand(model)[:, 0], atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_without_a_network_the_error_names_the_address(monkeypatch, tmp_path):
    from urllib.error import URLError

    def no_network(url, **settings):
        assert settings["weights_only"] is True
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(ToxlocError, match=r"https://.*ckpt or the folder unitary/.* detoxify-multilingual=PATH"):
        get_evaluators(["detoxify-multilingual"])


def test_a_published_checkpoint_without_its_base_model(checkpoint, monkeypatch):
    """The checkpoint is there, but the tokenizer and the configuration of its base model are not."""
    saved = torch.load(checkpoint[0], weights_only=True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **settings: saved)
    with pytest.raises(ToxlocError, match=r"no-such/base-model.* folder unitary/toxic-bert .* detoxify-original=PATH"):
        get_evaluators(["detoxify-original"])


def test_a_connection_that_breaks_off(monkeypatch):
    def broken(url, **settings):
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", broken)
    with pytest.raises(ToxlocError, match=r"'original' could not be downloaded \(timed out\)"):
        get_evaluators(["detoxify-original"])
