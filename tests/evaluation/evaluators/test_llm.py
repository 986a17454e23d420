import numpy as np
import pytest
import torch

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.llm import TEMPLATES, LLMJudge, Template
from toxloc.evaluation.evaluators.registry import get_evaluators

TEXTS = ["You are a fool", "The train leaves at nine, and she will be on it if all goes well.", "no"]
TINY = Template(lambda tokenizer, text: f"Is it rude? {text} Answer:", (" yes", " Yes"), (" no",))


def by_hand(lm, template):
    """Compute the scores one prompt at a time, from the tokens that begin a yes or a no."""
    scores = []
    first = [
        {lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
        for words in (template.yes, template.no)
    ]
    for text in TEXTS:
        ids = torch.tensor([lm.tokenizer(template.prompt(lm.tokenizer, text))["input_ids"]])
        with torch.no_grad():
            p = lm.hf(ids).logits[0, -1].double().softmax(-1)
        yes, no = (sum(p[i].item() for i in ids) for ids in first)
        scores.append(yes / (yes + no))
    return scores


@pytest.mark.parametrize("template", ["instruct", TINY])
def test_the_score_is_the_share_of_yes(lm, template):
    judge = LLMJudge("toxloc-tiny", template)
    expected = by_hand(lm, TEMPLATES[template] if isinstance(template, str) else template)
    np.testing.assert_allclose(judge.score(TEXTS)["toxicity"], expected, atol=1e-5)
    assert len({round(score, 5) for score in expected}) == 3


class FakeTokenizer:
    """Returns the messages and the guideline that a template passes to the chat template of a model."""

    chat_template = "not None"

    def apply_chat_template(self, turns, **settings):
        assert settings["add_generation_prompt"] and settings["tokenize"] is False
        return f"{[(turn['role'], turn['content']) for turn in turns]} {settings.get('guideline')}"


def test_presets_use_the_chat_template_of_the_model():
    prompts = {name: template.prompt(FakeTokenizer(), "TEXT") for name, template in TEMPLATES.items()}
    assert "Answer with one word, yes or no.\\n\\nText: TEXT" in prompts["instruct"]
    assert prompts["llama-guard"].endswith("('assistant', 'TEXT')] None\n\n")  # the verdict follows an empty line
    assert "('user', 'TEXT')" in prompts["shieldgemma"] and "shall not be rude" in prompts["shieldgemma"]


def test_names_and_errors():
    (judge,) = get_evaluators(["instruct=toxloc-tiny"])
    assert judge.name == "instruct:toxloc-tiny"
    with pytest.raises(ToxlocError, match=r"'oracle'.* instruct, llama-guard"):
        LLMJudge("toxloc-tiny", "oracle")
    with pytest.raises(ToxlocError, match=r"'toxloc-tiny'.* same token.* template"):
        LLMJudge("toxloc-tiny", Template(TINY.prompt, (" yes",), (" yes",))).prepare()
    with pytest.raises(ToxlocError, match=r"instruct needs .* instruct=PATH"):
        get_evaluators(["instruct"])
    with pytest.raises(ToxlocError, match=r"nowhere\.gguf"):
        get_evaluators(["instruct=nowhere.gguf"])
