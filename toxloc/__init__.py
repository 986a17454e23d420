"""toxloc: find where a language model keeps its toxicity, turn it down without retraining, prove what it cost.

Names load on first use, so that `import toxloc` and `toxloc --help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .causal import CausalProof, Knockout, KnockoutCurve, KnockoutTest, causal_proof, knockout, knockout_curve
    from .errors import ToxlocError
    from .evaluation import Evaluation, evaluate
    from .export import export_hf, export_peft
    from .inside import Driven, Promoted, TokenView, driving_texts, promoted_tokens, token_view
    from .interventions import (
        TRNE,
        AurA,
        Budget,
        Chain,
        Damp,
        DirectionalAblation,
        Intervention,
        LinearAcT,
        Meow2X,
        ProFS,
        Steering,
        ValueVector,
        load_intervention,
    )
    from .localization import Localization, localize
    from .model import LoadedModel, load_model
    from .pipeline import RunResult, run
    from .prompts import ContrastSet, NeutralText, PromptSet, load_contrast, load_neutral, load_prompts
    from .statistics import ContrastStatistics, collect_contrast

_HOME = {
    "CausalProof": "causal", "Knockout": "causal", "KnockoutCurve": "causal", "KnockoutTest": "causal",
    "causal_proof": "causal", "knockout": "causal", "knockout_curve": "causal",
    "ToxlocError": "errors",
    "Evaluation": "evaluation", "evaluate": "evaluation",
    "Driven": "inside", "Promoted": "inside", "TokenView": "inside", "driving_texts": "inside",
    "promoted_tokens": "inside", "token_view": "inside",
    "export_hf": "export", "export_peft": "export",
    "AurA": "interventions", "Budget": "interventions", "Chain": "interventions", "Damp": "interventions",
    "DirectionalAblation": "interventions", "Intervention": "interventions", "LinearAcT": "interventions",
    "Meow2X": "interventions", "ProFS": "interventions", "Steering": "interventions", "TRNE": "interventions",
    "ValueVector": "interventions", "load_intervention": "interventions",
    "Localization": "localization", "localize": "localization",
    "LoadedModel": "model", "load_model": "model",
    "RunResult": "pipeline", "run": "pipeline",
    "ContrastSet": "prompts", "NeutralText": "prompts", "PromptSet": "prompts",
    "load_contrast": "prompts", "load_neutral": "prompts", "load_prompts": "prompts",
    "ContrastStatistics": "statistics", "collect_contrast": "statistics",
}
__all__ = [
    "TRNE", "AurA", "Budget", "CausalProof", "Chain", "ContrastSet", "ContrastStatistics", "Damp",
    "DirectionalAblation", "Driven", "Evaluation", "Intervention", "Knockout", "KnockoutCurve", "KnockoutTest",
    "LinearAcT", "LoadedModel", "Localization", "Meow2X", "NeutralText", "ProFS", "Promoted", "PromptSet",
    "RunResult", "Steering", "TokenView", "ToxlocError", "ValueVector", "causal_proof", "collect_contrast",
    "driving_texts", "evaluate", "export_hf", "export_peft", "knockout", "knockout_curve", "load_contrast",
    "load_intervention", "load_model", "load_neutral", "load_prompts", "localize", "promoted_tokens", "run",
    "token_view",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'toxloc' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
