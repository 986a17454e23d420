"""toxloc: find where a language model keeps its toxicity, turn it down without retraining, prove what it cost.

Names load on first use, so that `import toxloc` and `toxloc --help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import ToxlocError
    from .evaluation import Evaluation, evaluate
    from .interventions import TRNE, Intervention, Meow2X, load_intervention
    from .localization import Localization, localize
    from .model import LoadedModel, load_model
    from .pipeline import RunResult, run
    from .prompts import ContrastSet, NeutralText, PromptSet, load_contrast, load_neutral, load_prompts
    from .statistics import ContrastStatistics, collect_contrast

_HOME = {
    "ToxlocError": "errors",
    "Evaluation": "evaluation", "evaluate": "evaluation",
    "Intervention": "interventions", "Meow2X": "interventions", "TRNE": "interventions",
    "load_intervention": "interventions",
    "Localization": "localization", "localize": "localization",
    "LoadedModel": "model", "load_model": "model",
    "RunResult": "pipeline", "run": "pipeline",
    "ContrastSet": "prompts", "NeutralText": "prompts", "PromptSet": "prompts",
    "load_contrast": "prompts", "load_neutral": "prompts", "load_prompts": "prompts",
    "ContrastStatistics": "statistics", "collect_contrast": "statistics",
}
__all__ = [
    "TRNE", "ContrastSet", "ContrastStatistics", "Evaluation", "Intervention", "LoadedModel", "Localization",
    "Meow2X", "NeutralText", "PromptSet", "RunResult", "ToxlocError", "collect_contrast", "evaluate",
    "load_contrast", "load_intervention", "load_model", "load_neutral", "load_prompts", "localize", "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'toxloc' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
