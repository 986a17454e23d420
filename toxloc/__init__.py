"""toxloc: find where a language model keeps its toxicity, turn it down without retraining, prove what it cost.

Names load on first use, so that `import toxloc` and `toxloc --help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .causal import CausalProof, Knockout, KnockoutCurve, KnockoutTest, causal_proof, knockout, knockout_curve
    from .comparison import Comparison, compare
    from .errors import ToxlocError
    from .evaluation import Evaluation, evaluate, load_evaluation
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
    from .oversuppression import OverSuppression, over_suppression
    from .pipeline import RunResult, run
    from .prompts import ContrastSet, NeutralText, PromptSet, load_contrast, load_neutral, load_prompts
    from .protocols import PROTOCOLS, Protocol
    from .statistics import ContrastStatistics, collect_contrast
    from .sweeps import Grid, Plan, Summary, load_grid, sweep

_HOME = {
    "CausalProof": "causal", "Knockout": "causal", "KnockoutCurve": "causal", "KnockoutTest": "causal",
    "causal_proof": "causal", "knockout": "causal", "knockout_curve": "causal",
    "Comparison": "comparison", "compare": "comparison",
    "ToxlocError": "errors",
    "Evaluation": "evaluation", "evaluate": "evaluation", "load_evaluation": "evaluation",
    "Driven": "inside", "Promoted": "inside", "TokenView": "inside", "driving_texts": "inside",
    "promoted_tokens": "inside", "token_view": "inside",
    "export_hf": "export", "export_peft": "export",
    "AurA": "interventions", "Budget": "interventions", "Chain": "interventions", "Damp": "interventions",
    "DirectionalAblation": "interventions", "Intervention": "interventions", "LinearAcT": "interventions",
    "Meow2X": "interventions", "ProFS": "interventions", "Steering": "interventions", "TRNE": "interventions",
    "ValueVector": "interventions", "load_intervention": "interventions",
    "Localization": "localization", "localize": "localization",
    "LoadedModel": "model", "load_model": "model",
    "OverSuppression": "oversuppression", "over_suppression": "oversuppression",
    "RunResult": "pipeline", "run": "pipeline",
    "ContrastSet": "prompts", "NeutralText": "prompts", "PromptSet": "prompts",
    "load_contrast": "prompts", "load_neutral": "prompts", "load_prompts": "prompts",
    "PROTOCOLS": "protocols", "Protocol": "protocols",
    "ContrastStatistics": "statistics", "collect_contrast": "statistics",
    "Grid": "sweeps", "Plan": "sweeps", "Summary": "sweeps", "load_grid": "sweeps", "sweep": "sweeps",
}
__all__ = [
    "PROTOCOLS", "TRNE", "AurA", "Budget", "CausalProof", "Chain", "Comparison", "ContrastSet",
    "ContrastStatistics", "Damp", "DirectionalAblation", "Driven", "Evaluation", "Grid", "Intervention", "Knockout",
    "KnockoutCurve", "KnockoutTest", "LinearAcT", "LoadedModel", "Localization", "Meow2X", "NeutralText",
    "OverSuppression", "Plan", "ProFS", "Promoted", "PromptSet", "Protocol", "RunResult", "Steering", "Summary",
    "TokenView", "ToxlocError", "ValueVector", "causal_proof", "collect_contrast", "compare", "driving_texts",
    "evaluate", "export_hf", "export_peft", "knockout", "knockout_curve", "load_contrast", "load_evaluation",
    "load_grid", "load_intervention", "load_model", "load_neutral", "load_prompts", "localize", "over_suppression",
    "promoted_tokens", "run", "sweep", "token_view",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'toxloc' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
