"""The texts of a run, disjoint where they must be."""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ToxlocError
from ..evaluation.evaluators.base import Evaluator
from ..models.loaded import LoadedModel
from ..support.progress import step
from ..texts.contrast import ContrastSet
from ..texts.loading import load_contrast, load_neutral, load_prompts
from ..texts.neutral import NeutralText
from ..texts.prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .settings import Settings

SAMPLED = "sampled"  # as a contrast set: texts that the model writes itself
HELD_OUT = 0.2  # of the contrast set, for the knock-outs


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run, disjoint where they must be."""

    contrast: ContrastSet
    held_out: ContrastSet
    judged: PromptSet
    everyday: PromptSet | None
    neutral: NeutralText
    check: list[str]
    check_name: str


def load_texts(s: Settings) -> Callable[[LoadedModel, list[Evaluator]], RunTexts]:
    """Read all files, and return what completes the texts once there is a model to sample from."""
    prompts = load_prompts(s.prompts).limited(s.max_prompts, s.seed)
    judged = prompts.only(PROVOCATIVE) or prompts
    everyday = prompts.only(EVERYDAY) if judged is not prompts else None
    neutral = load_neutral(s.neutral, limit=s.max_neutral, seed=s.seed)
    check, check_name = _check_texts(s, neutral)
    if s.contrast == SAMPLED:
        sampling, judged = judged.split(0.5, s.seed)
        contrast = None
    else:
        contrast = load_contrast(s.contrast).without(prompts.texts).limited(s.max_texts, s.seed)

    def complete(lm: LoadedModel, judges: list[Evaluator]) -> RunTexts:
        found = contrast
        if found is None:
            with step("Sampling a contrast set"):
                found = ContrastSet.from_model(lm, sampling, judges, min(s.max_texts, 200), samples=8, max_rounds=6,
                                               max_new_tokens=s.max_new_tokens, seed=s.seed + 1)
        return RunTexts(*found.split(1 - HELD_OUT, s.seed), judged, everyday, neutral, check, check_name)

    return complete


def _check_texts(s: Settings, neutral: NeutralText) -> tuple[list[str], str]:
    """Everyday texts on which the reported cost is measured, none of them seen before, and what they are called."""
    if s.check is None:
        return neutral.check, f"{neutral.name}, third part"
    other = load_neutral(s.check, limit=s.max_neutral, seed=s.seed)
    seen = {*neutral.fit, *neutral.tune}
    apart = [text for text in other.texts if text not in seen]
    if not apart:
        raise ToxlocError(f"--check {s.check} holds no text that --neutral {s.neutral} does not; give another file.")
    return apart, other.name
