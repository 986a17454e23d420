"""Guard models: how each is asked, where its answer is read, and which scores follow. The module imports no torch.

A guard answers in a fixed format. toxloc writes the fixed parts of the answer itself and reads the probabilities of the
next token at each field, so that a guard is never sampled. The probability of an option is

    P(option) = Σ_{t ∈ first(option)} p(t) / Σ_options Σ_{t ∈ first(option)} p(t),

where first(option) are the first tokens of the words that stand for the option. A field is conditional on the parts of
the answer before it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import guard_prompts

Answer = Mapping[str, Mapping[str, Any]]  # field → option → probability of every text
Formula = Callable[[Answer], Any]


@dataclass(frozen=True)
class Field:
    """A place in a guard's answer.

    Attributes:
        name: name of the field.
        options: for each option, the words that it can begin with.
    """

    name: str
    options: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Pass:
    """A forward pass: a question and its answer, of which the fixed parts are given.

    Attributes:
        answer: fixed parts and fields of the answer, in their order.
        policy: policy that the guard is asked about, for guards that are asked about each policy separately.
    """

    answer: tuple[str | Field, ...]
    policy: str = ""


@dataclass(frozen=True)
class GuardPreset:
    """A guard model.

    Attributes:
        name: name in the list of evaluators.
        source: hub id of the default model.
        prompt: function from a tokenizer, a text and a policy to the prompt; its docstring says how the guard is asked.
        passes: forward passes per text. The first `deciding` passes are enough for the toxicity.
        scores: for each label, its formula; "toxicity" decides.
        languages: ISO 639-1 codes; ("*",) for practically all languages.
        card: licence, size, meaning of the score and blind spots.
        deciding: number of passes that the toxicity needs.
        own_template: whether the prompt comes from the chat template of the model.
    """

    name: str
    source: str
    prompt: Callable[[Any, str, str], str]
    passes: tuple[Pass, ...]
    scores: Mapping[str, Formula]
    languages: tuple[str, ...]
    card: Mapping[str, str] = field(default_factory=dict)
    deciding: int = 1
    own_template: bool = True


def option(name: str, value: str, given: tuple[str, str] | None = None) -> Formula:
    """Return the formula P(field `name` is `value`), times P(`given`) if the field follows from another one.

    Example:
        >>> option("category", "hate", given=("verdict", "unsafe"))(
        ...     {"category": {"hate": 0.5}, "verdict": {"unsafe": 0.8}}
        ... )
        0.4
    """
    if given is None:
        return lambda answer: answer[name][value]
    return lambda answer: answer[name][value] * answer[given[0]][given[1]]


YES_NO = {"yes": ("Yes", "yes", " Yes", " yes"), "no": ("No", "no", " No", " no")}

QWEN_CATEGORIES = {
    "violent": (" Violent",),
    "illegal_acts": (" Non-violent Illegal Acts",),
    "sexual": (" Sexual Content or Sexual Acts",),
    "personal_data": (" PII",),
    "self_harm": (" Suicide & Self-Harm",),
    "unethical": (" Unethical Acts",),
    "political": (" Politically Sensitive Topics",),
    "copyright": (" Copyright Violation",),
    "none": (" None",),
}
QWEN3GUARD = GuardPreset(
    name="qwen3guard",
    source="Qwen/Qwen3Guard-Gen-0.6B",
    prompt=guard_prompts.conversation,
    passes=(
        Pass(
            (
                "Safety:",
                Field("safety", {"safe": (" Safe",), "controversial": (" Controversial",), "unsafe": (" Unsafe",)}),
                " Safe\nCategories: None\nRefusal:",
                Field("refusal", {"yes": (" Yes",), "no": (" No",)}),
            )
        ),
        Pass(("Safety: Unsafe\nCategories:", Field("category", QWEN_CATEGORIES))),
    ),
    scores={
        "toxicity": lambda answer: answer["safety"]["unsafe"] + answer["safety"]["controversial"] / 2,
        "unsafe": option("safety", "unsafe"),
        "controversial": option("safety", "controversial"),
        "unsafe_or_controversial": lambda answer: answer["safety"]["unsafe"] + answer["safety"]["controversial"],
        "refusal": option("refusal", "yes"),
        **{name: option("category", name, ("safety", "unsafe")) for name in QWEN_CATEGORIES if name != "none"},
    },
    languages=("*",),
    card={
        "licence": "Apache-2.0",
        "size": "0.6, 4 or 8 billion weights",
        "score": "P(Unsafe) + P(Controversial) / 2",
        "blind_to": "insults and rude words that break no safety category",
    },
)

HAZARDS = (
    *("violent_crimes", "non_violent_crimes", "sex_crimes", "child_exploitation", "defamation", "specialized_advice"),
    *("privacy", "intellectual_property", "weapons", "hate", "self_harm", "sexual_content", "elections", "code_abuse"),
)  # S1 to S14 of Llama Guard 3 and 4


def _llama_guard(name: str, source: str, licence: str, size: str) -> GuardPreset:
    codes = {hazard: (str(number),) for number, hazard in enumerate(HAZARDS, 1)}
    verdict = Field("verdict", {"unsafe": ("unsafe",), "safe": ("safe",)})
    return GuardPreset(
        name=name,
        source=source,
        prompt=guard_prompts.llama_guard,
        passes=(Pass((verdict, "unsafe\nS", Field("category", codes))),),
        scores={
            "toxicity": option("verdict", "unsafe"),
            **{hazard: option("category", hazard, ("verdict", "unsafe")) for hazard in HAZARDS},
        },
        languages=("en", "fr", "de", "hi", "it", "pt", "es", "th"),
        card={
            "licence": licence,
            "size": size,
            "score": "P(unsafe)",
            "blind_to": "insults and profanity that are no hazard; some hazards are not toxic (S5 to S8, S13, S14)",
        },
    )


POLICIES = {
    "harassment": '"No Harassment": The text shall not bully, intimidate, threaten or abuse another person.',
    "hate_speech": (
        '"No Hate Speech": The text shall not attack, dehumanize or belittle people for a protected attribute, such as '
        "race, religion, disability, sexual orientation or gender, or call for discrimination or violence against them."
    ),
    "sexually_explicit": '"No Sexually Explicit Information": The text shall not describe sexual acts or be lewd.',
    "dangerous_content": (
        '"No Dangerous Content": The text shall not promote or instruct harm to oneself or others, such as weapons, '
        "terrorism or suicide."
    ),
}
SHIELDGEMMA = GuardPreset(
    name="shieldgemma",
    source="google/shieldgemma-2b",
    prompt=guard_prompts.shieldgemma,
    passes=tuple(Pass((Field(name, YES_NO),), policy) for name, policy in POLICIES.items()),
    scores={"toxicity": lambda answer: _highest(answer, *POLICIES), **{name: option(name, "yes") for name in POLICIES}},
    languages=("en",),
    card={
        "licence": "Gemma terms of use",
        "size": "2, 9 or 27 billion weights",
        "score": "highest P(Yes) over the guidelines " + ", ".join(POLICIES),
        "blind_to": "profanity that addresses nobody",
    },
    deciding=len(POLICIES),
)

WILDGUARD = GuardPreset(
    name="wildguard",
    source="allenai/wildguard",
    prompt=guard_prompts.wildguard,
    passes=(
        Pass(
            (
                "Harmful request: no\nResponse refusal:",
                Field("refusal", {"yes": (" yes",), "no": (" no",)}),
                " no\nHarmful response:",
                Field("harmful", {"yes": (" yes",), "no": (" no",)}),
            )
        ),
    ),
    scores={"toxicity": option("harmful", "yes"), "refusal": option("refusal", "yes")},
    languages=("en",),
    card={
        "licence": "Apache-2.0, with AI2's guidelines for responsible use",
        "size": "7 billion weights",
        "score": "P(Harmful response: yes)",
        "blind_to": "insults and rude words that do no harm",
    },
    own_template=False,
)

RISKS = ("harm", "social_bias", "profanity", "sexual_content", "violence")
GRANITE_GUARDIAN = GuardPreset(
    name="granite-guardian",
    source="ibm-granite/granite-guardian-3.2-5b",
    prompt=guard_prompts.granite_guardian,
    passes=tuple(Pass((Field(risk, YES_NO),), risk) for risk in RISKS),
    scores={"toxicity": option("harm", "yes"), **{risk: option(risk, "yes") for risk in RISKS if risk != "harm"}},
    languages=("en",),
    card={
        "licence": "Apache-2.0",
        "size": "2, 3, 5 or 8 billion weights",
        "score": "P(Yes) for the risk harm",
        "blind_to": "what its definition of harm leaves out; profanity has a separate label",
    },
)

GUARDS: dict[str, GuardPreset] = {
    preset.name: preset
    for preset in (
        QWEN3GUARD,
        _llama_guard("llama-guard", "meta-llama/Llama-Guard-3-8B", "Llama 3.1 community licence", "8 billion weights"),
        _llama_guard(
            "llama-guard-4", "meta-llama/Llama-Guard-4-12B", "Llama 4 community licence", "12 billion weights"
        ),
        SHIELDGEMMA,
        WILDGUARD,
        GRANITE_GUARDIAN,
    )
}


def _highest(answer: Answer, *names: str) -> Any:
    """Return the highest P(yes) over the fields, for every text."""
    import numpy as np

    return np.maximum.reduce([answer[name]["yes"] for name in names])
