import copy
import io
import pickle

import pytest
from rich.console import Console

from toxloc import ContrastSet, NeutralText, PromptSet, ToxlocError
from toxloc.support.progress import shown
from toxloc.texts.chat import Chat, end_of_turn, thinking_switch, without_thinking
from toxloc.texts.chat_text import ChatText
from toxloc.texts.settings import ChatSettings

TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}> {{ turn.content | trim }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
THINKING = TEMPLATE.replace("<assistant> {%", "<assistant> {% if not enable_thinking %}<think></think>{% endif %}{%")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


@pytest.fixture
def tokenizer(lm):
    own = copy.deepcopy(lm.tokenizer)
    own.chat_template = TEMPLATE
    return own


@pytest.fixture
def chat_lm(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", TEMPLATE)
    return lm


def test_a_conversation_that_the_model_is_to_continue(tokenizer):
    text = Chat().asked(tokenizer, ["Hi", "Hello.", "Who are you?"])
    assert text == (
        "<user> Hi<|endoftext|>\n<assistant> Hello.<|endoftext|>\n<user> Who are you?<|endoftext|>\n<assistant> "
    )
    assert text.spans == ()
    assert Chat(system="Be kind.").asked(tokenizer, ["Hi"]).startswith("<system> Be kind.<|endoftext|>\n<user> Hi")


def test_only_the_answer_counts(tokenizer):
    text = Chat().answered(tokenizer, " Go on. And on. ", ["Go on. And on."])
    ((begin, end),) = text.spans
    assert text[begin:end] == "Go on. And on." and text[:begin].endswith("<assistant> ")
    assert text[end:] == "<|endoftext|>\n"


def test_the_end_of_a_turn_is_a_special_token(tokenizer):
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "")
    assert end_of_turn(tokenizer) is None


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("Who are you?", "Who are you?"),
        ("Go away!", "Go away!"),
        ("你是谁？", "你是谁？"),
        ("You are such a", "Continue this text: You are such a"),
    ],
)
def test_a_complete_sentence_is_sent_as_it_is(text, request_):
    assert Chat().request(text) == request_


def test_the_sets_in_a_template(chat_lm):
    prompts = PromptSet(["You are", "Well?"], ["a", "b"], turns=None).as_chat(chat_lm)
    assert prompts.texts[0] == "<user> Continue this text: You are<|endoftext|>\n<assistant> "
    assert prompts.name == "custom, as chat" and prompts.kinds == ["a", "b"]
    again = prompts.as_chat(chat_lm)
    assert again.texts == prompts.texts and again.name == prompts.name
    turns = PromptSet(["Well?"], turns=[["Hi", "Hello.", "Well?"]]).as_chat(chat_lm)
    assert turns.texts == [Chat().asked(chat_lm.tokenizer, ["Hi", "Hello.", "Well?"])]
    pairs = ContrastSet(["You fool."], ["You friend."], paired=True).in_both_forms(chat_lm)
    assert pairs.toxic == ["You fool.", "<user> Go on.<|endoftext|>\n<assistant> You fool.<|endoftext|>\n"]
    assert [isinstance(text, ChatText) for text in pairs.neutral] == [False, True] and pairs.paired
    neutral = NeutralText(["a b"], ["c d"], ["e f"]).in_both_forms(chat_lm)
    assert [len(part) for part in (neutral.fit, neutral.tune, neutral.check)] == [2, 2, 2]
    assert neutral.tune[1].spans == ((39, 42),)


def test_subsets_and_pickles_keep_the_spans(chat_lm):
    pairs = ContrastSet(["You fool.", "Go away."], ["You friend.", "Come in."], paired=True).as_chat(chat_lm)
    for side in pairs.split(0.5):
        assert all(text[a:b] in ("You fool.", "Go away.") for text in side.toxic for a, b in text.spans)
    again = pickle.loads(pickle.dumps(pairs.toxic[0]))
    assert isinstance(again, ChatText) and again == pairs.toxic[0] and again.spans == pairs.toxic[0].spans


@pytest.mark.parametrize("is_on", [True, False])
def test_thinking_is_turned_on_and_off(tokenizer, is_on):
    tokenizer.chat_template = THINKING
    text = Chat(thinking=is_on).asked(tokenizer, ["Hi"])
    assert text.endswith("<assistant> " if is_on else "<think></think>")


def test_what_cannot_be_done_is_said(tokenizer):
    with pytest.raises(ToxlocError, match="no switch for thinking"):
        thinking_switch(tokenizer)
    with pytest.raises(ToxlocError, match="no switch for thinking"):
        Chat(thinking=False).asked(tokenizer, ["Hi"])
    with pytest.raises(ToxlocError, match="has no \\{text\\}"):
        Chat(opening="Go on:")
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(ToxlocError, match=r"no system role.*leave it out"):
        Chat(system="Be kind.").asked(tokenizer, ["Hi"])
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn.role == 'user' %}{{ turn.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ToxlocError, match="leaves out the system message"):
        Chat(system="Be kind.").asked(tokenizer, ["Hi"])
    with pytest.raises(ToxlocError, match="place in the conversation is unknown"):
        Chat().answered(tokenizer, "Hello.")
    tokenizer.chat_template = None
    with pytest.raises(ToxlocError, match="has no chat template"):
        Chat().asked(tokenizer, ["Hi"])


@pytest.mark.parametrize(
    ("prompt", "completion", "parts"),
    [
        ("Hi", "Hello!", ("", "Hello!")),
        ("Hi", "<think>They greet.</think>\n\nHello!", ("They greet.", "Hello!")),
        ("Hi", "\n<think>They greet", ("They greet", "")),
        ("Hi <think>\n", "They greet.</think>Hello!", ("They greet.", "Hello!")),
        ("Hi", "Hello <think>", ("", "Hello <think>")),
    ],
)
def test_thoughts_are_split_off(prompt, completion, parts):
    assert without_thinking(prompt, completion) == parts


@pytest.mark.parametrize(
    ("chat", "template", "is_chat"),
    [("auto", TEMPLATE, True), ("auto", None, False), (True, TEMPLATE, True), (False, TEMPLATE, False)],
)
def test_conversations_are_chosen_by_the_template(tokenizer, chat, template, is_chat):
    tokenizer.chat_template = template
    assert (ChatSettings.of(chat=chat).conversation(tokenizer) is not None) == is_chat


def test_settings_that_contradict_each_other(tokenizer):
    with pytest.raises(ToxlocError, match=r"system='Be kind\.' is for conversations"):
        ChatSettings.of(chat="off", system="Be kind.").conversation(tokenizer)
    with pytest.raises(ToxlocError, match="no switch for thinking"):
        ChatSettings.of(thinking="off").conversation(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ToxlocError, match="has no chat template"):
        ChatSettings.of(chat=True).conversation(tokenizer)


@pytest.mark.parametrize(
    ("chat", "template", "is_said"), [("auto", TEMPLATE, True), ("auto", None, False), ("on", TEMPLATE, False)]
)
def test_a_choice_that_follows_from_the_model_is_said(tokenizer, chat, template, is_said):
    tokenizer.chat_template = template
    screen = io.StringIO()
    with shown(Console(file=screen, width=200)):
        ChatSettings.of(chat=chat).announce("m", tokenizer)
    assert is_said == ("m has a chat template, so it reads conversations" in screen.getvalue())
