"""Tiny random guards of each architecture, with chat templates of the same shape as those of the real guards."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from toxloc.evaluation.evaluators.guard_presets import GUARDS
from toxloc.evaluation.evaluators.guard_prompts import OPENING, WILDGUARD

TEXTS = ["you are a fool", "the train leaves at nine and she will be on it if all goes well", "no"]
PIECES = r" ?[A-Za-z']+|[0-9]{1,3}|\n| |[^A-Za-z0-9\s]"
MARKS = ["[UNK]", "[PAD]", "<s>", "<turn>", "<end>"]
SMALL = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    initializer_range=0.6,
    max_position_embeddings=256,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=4,
)

# {0} and {1} are the turns of the user and of the assistant.
PROMPTS = {
    "qwen3guard": "<turn>user\nUSER: {0}\nASSISTANT: {1}<end>\n<turn>assistant\n",
    "llama-guard": "<s><turn>user\nUser: {0}\nAgent: {1}<end><turn>assistant",
    "llama-guard-4": "<s><turn>user\nUser: {0}\nAgent: {1}<end><turn>assistant\n",
    "shieldgemma": "<s>Human Question: {0}\nChatbot Response: {1}\nPrinciple:\n{guideline}\nYes or No?\n\n",
    "granite-guardian": "<turn>user\nUser: {0}\nAssistant: {1}\nRisk: {risk_name}<end>\n<turn>assistant",
    "granite-guardian-3.3": "<turn>user\nUser: {0}\nAssistant: {1}\nCriterion: {criteria_id}<end>\n<turn>assistant",
}
WORDS = (
    "Safety: Safe Unsafe Controversial\nCategories: None Violent Non-violent Illegal Acts Sexual Content PII Suicide "
    "& Self-Harm Unethical Politically Sensitive Topics Copyright Violation\nRefusal: Yes No yes no\nunsafe\nsafe\nS "
    "Harmful request:\nResponse refusal:\nHarmful response:\nYes\nNo\nyes\nno\n<score> harm\n[INST]\n[/INST]\n<|user|>"
    "\n<|assistant|>\nHuman user:\nAI assistant:\n---\nAnswers:"
)


def template(name):
    """Return the chat template of a guard."""
    text = PROMPTS[name]
    part = ".content[0].text" if name == "llama-guard-4" else ".content"  # a list of parts, or a string
    text = text.replace("{0}", "{{ messages[0]" + part + " }}").replace("{1}", "{{ messages[1]" + part + " }}")
    text = text.replace("{guideline}", "{{ guideline }}")
    for key in ("risk_name", "criteria_id"):
        text = text.replace(f"{{{key}}}", f"{{{{ guardian_config['{key}'] }}}}")
    return text + "\n" * text.endswith("\n")  # Jinja drops the last line break


def tokenizer(name, leave_out=()):
    """Return a tokenizer of words, which knows the words of all prompts and answers but those that are left out."""
    splitter = pre_tokenizers.Split(Regex(PIECES), "isolated")
    questions = [WILDGUARD, *(item.policy for preset in GUARDS.values() for item in preset.passes)]
    texts = [OPENING, "Good morning.", *TEXTS, *questions]
    corpus = "\n".join([*PROMPTS.values(), WORDS, *texts, *(f" {text}" for text in texts)])
    known = dict.fromkeys(piece for piece, _ in splitter.pre_tokenize_str(corpus))
    known |= dict.fromkeys(str(number) for number in range(1, 15))
    vocabulary = [*MARKS, *(word for word in known if word not in leave_out)]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = splitter, decoders.Fuse()
    words.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>", eos_token="<end>"
    )
    made.chat_template = template(name) if name in PROMPTS else None
    return made


def _llama4(vocab_size):
    text = SMALL | dict(vocab_size=vocab_size, intermediate_size_mlp=32, num_local_experts=1, moe_layers=[])
    vision = dict(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        vision_output_dim=16,
        image_size=28,
        patch_size=14,
        projector_input_dim=16,
        projector_output_dim=16,
    )
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision, pad_token_id=1))


MODELS = {
    "qwen3guard": lambda n: Qwen3ForCausalLM(Qwen3Config(**SMALL, vocab_size=n)),
    "llama-guard": lambda n: LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=n)),
    "llama-guard-4": _llama4,
    "shieldgemma": lambda n: Gemma2ForCausalLM(Gemma2Config(**SMALL, vocab_size=n, query_pre_attn_scalar=8)),
    "wildguard": lambda n: MistralForCausalLM(MistralConfig(**SMALL, vocab_size=n)),
    "granite-guardian": lambda n: GraniteForCausalLM(GraniteConfig(**SMALL, vocab_size=n)),
    "granite-guardian-3.3": lambda n: GraniteForCausalLM(GraniteConfig(**SMALL, vocab_size=n)),
}


def save(name, folder, leave_out=()):
    """Save a tiny guard; return its folder, its language model and its tokenizer."""
    set_seed(0)
    words = tokenizer(name, leave_out)
    model = MODELS[name](len(words)).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder), getattr(model, "language_model", model), words
