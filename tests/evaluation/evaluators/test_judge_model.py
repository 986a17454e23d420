import json

import pytest
import torch

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.judge_model import MAX_TEXT, JudgeModel

from .tiny_guards import save


def test_logits_at_places_do_not_depend_on_padding(tmp_path):
    folder, model, _ = save("llama-guard", tmp_path)
    judge = JudgeModel.load(folder, torch.device("cpu"))
    rows, places = [[5, 6, 7, 8, 9], [10, 11, 12]], [[1, 4], [0, 2]]
    logits = judge.logits(rows, places)
    with torch.no_grad():
        for i, row in enumerate(rows):
            torch.testing.assert_close(logits[i], model(torch.tensor([row])).logits[0, places[i]], atol=1e-5, rtol=0)


def test_of_a_multimodal_model_only_the_text_decoder_is_kept(tmp_path):
    folder, model, _ = save("llama-guard-4", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Llama4ForConditionalGeneration"]
    loaded = JudgeModel.load(folder, torch.device("cpu")).model
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name


def test_the_chat_template_of_a_processor_is_used_if_the_tokenizer_has_none(tmp_path):
    folder, _, words = save("llama-guard", tmp_path)
    template, words.chat_template = words.chat_template, None
    (tmp_path / "chat_template.jinja").unlink()
    words.save_pretrained(folder)
    assert JudgeModel.load(folder, torch.device("cpu")).tokenizer.chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert JudgeModel.load(folder, torch.device("cpu")).tokenizer.chat_template == template


def test_a_model_that_cannot_be_loaded(tmp_path):
    folder, _, _ = save("llama-guard", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ToxlocError, match=r"cannot be loaded; give a model folder or a \.gguf file"):
        JudgeModel.load(folder, torch.device("cpu"))


def test_only_long_texts_are_changed(tmp_path):
    judge = JudgeModel.load(save("llama-guard", tmp_path)[0], torch.device("cpu"))
    assert judge.truncated("an unknown word") == "an unknown word"
    assert judge.truncated("no" + " no" * 400) == "no" + " no" * (MAX_TEXT - 1)
