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


def test_the_question_is_a_user_turn_in_the_chat_template_of_the_model(lm, monkeypatch):
    monkeypatch.setattr(
        lm.tokenizer, "chat_template", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    prompt = TEMPLATES["instruct"].prompt(lm.tokenizer, "TEXT")
    assert prompt.startswith("<user>Is the text below toxic") and prompt.endswith("yes or no.\n\nText: TEXT")


def test_names_and_errors():
    (judge,) = get_evaluators(["instruct=toxloc-tiny"])
    assert judge.name == "instruct:toxloc-tiny"
    with pytest.raises(ToxlocError, match=r"'oracle'.* instruct or give a Template, or use GuardJudge"):
        LLMJudge("toxloc-tiny", "oracle")
    with pytest.raises(ToxlocError, match=r"'toxloc-tiny'.* same token.* template"):
        LLMJudge("toxloc-tiny", Template(TINY.prompt, (" yes",), (" yes",))).prepare()
    with pytest.raises(ToxlocError, match=r"instruct needs .* instruct=PATH"):
        get_evaluators(["instruct"])
    with pytest.raises(ToxlocError, match=r"nowhere\.gguf"):
        get_evaluators(["instruct=nowhere.gguf"])
