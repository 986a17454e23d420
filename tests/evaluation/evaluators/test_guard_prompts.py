import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators import guard_prompts

from .tiny_guards import tokenizer

STRINGS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [STRINGS, PARTS])
def test_the_text_is_the_answer_to_a_neutral_turn(template):
    words = tokenizer("qwen3guard")
    words.chat_template = template
    assert guard_prompts.conversation(words, "TEXT") == "[user]Go on.[assistant]TEXT"


def test_an_empty_line_comes_before_the_verdict_of_llama_guard():
    words = tokenizer("llama-guard")
    for end in ("", "\n\n", "\n\n\n"):  # Jinja drops one of them
        words.chat_template = STRINGS + end
        assert guard_prompts.llama_guard(words, "TEXT") == "[user]Go on.[assistant]TEXT\n\n"


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ raise_exception('only one turn') }}"])
def test_a_template_that_does_not_show_the_text_is_refused(template):
    words = tokenizer("qwen3guard")
    words.chat_template = template
    with pytest.raises(ToxlocError, match=r"leaves out the assistant's turn.* judges responses"):
        guard_prompts.conversation(words, "TEXT")


def test_shieldgemma_inserts_the_guideline():
    words = tokenizer("shieldgemma")
    words.chat_template = STRINGS + "({{ guideline }})"
    assert guard_prompts.shieldgemma(words, "TEXT", "POLICY") == "[user]Go on.[assistant]TEXT(POLICY)"
    words.chat_template = "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}" + words.chat_template
    assert guard_prompts.shieldgemma(words, "TEXT", "POLICY") == "[user]TEXT(POLICY)"


def test_granite_guardian_names_the_risk_as_its_version_does():
    words = tokenizer("granite-guardian")
    words.chat_template = STRINGS + "({{ guardian_config['risk_name'] }}, {{ think is defined }})"
    assert guard_prompts.granite_guardian(words, "TEXT", "harm") == "[user]Go on.[assistant]TEXT(harm, True)"
    words.chat_template = STRINGS + "({{ guardian_config['criteria_id'] }}, {{ think }})"
    assert guard_prompts.granite_guardian(words, "TEXT", "harm") == "[user]Go on.[assistant]TEXT(harm, False)<score>"
