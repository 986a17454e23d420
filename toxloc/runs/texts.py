"""The texts of a run, disjoint where they must be."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ToxlocError
from ..evaluation.evaluators.base import Evaluator
from ..evaluation.sampled_contrast import contrast_from_model
from ..models.loaded import LoadedModel
from ..support.progress import step
from ..texts.contrast import ContrastSet
from ..texts.loading import load_contrast, load_neutral, load_prompts
from ..texts.neutral import NeutralText
from ..texts.prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .settings import RunSettings

SAMPLED = "sampled"  # as a contrast set: texts that the model writes itself
HELD_OUT = 0.2  # of the contrast set, for the knock-outs


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run.

    Attributes:
        contrast: what is localized with and fitted on.
        held_out: the part of the contrast set that the knock-outs are measured on.
        judged: the prompts that are judged: the provocative ones, where the file says which are.
        everyday: the everyday prompts; None if there are none.
        neutral: everyday text for the curvature and the budgets.
        check: everyday text on which the reported cost is measured; no other step sees it.
        check_name: where that comes from.
    """

    contrast: ContrastSet
    held_out: ContrastSet
    judged: PromptSet
    everyday: PromptSet | None
    neutral: NeutralText
    check: list[str]
    check_name: str


@dataclass(frozen=True)
class TextsRead:
    """The texts of a run as far as files give them; `complete` samples the contrast set if the model is to write it.

    Attributes:
        settings: the settings of the run.
        contrast: the contrast set; None if it is to be sampled.
        sampling: the prompts to sample it from.
        judged, everyday, neutral, check, check_name: see `RunTexts`.
    """

    settings: RunSettings
    contrast: ContrastSet | None
    sampling: PromptSet
    judged: PromptSet
    everyday: PromptSet | None
    neutral: NeutralText
    check: list[str]
    check_name: str

    def complete(self, lm: LoadedModel, judges: Sequence[Evaluator]) -> RunTexts:
        """Return the texts, sampling the contrast set from the model if it was not read."""
        s, contrast = self.settings, self.contrast
        if contrast is None:
            with step("Sampling a contrast set"):
                contrast = contrast_from_model(
                    lm,
                    self.sampling,
                    judges,
                    min(s.max_texts, 200),
                    samples=8,
                    max_rounds=6,
                    max_new_tokens=s.max_new_tokens,
                    seed=s.seed + 1,
                )
        return RunTexts(
            *contrast.split(1 - HELD_OUT, s.seed), self.judged, self.everyday, self.neutral, self.check, self.check_name
        )


def read_texts(s: RunSettings) -> TextsRead:
    """Read every file of a run.

    Raises:
        ToxlocError: a file cannot be used, or `check` holds nothing that `neutral` does not.
    """
    prompts = load_prompts(s.prompts).limited(s.max_prompts, s.seed)
    judged = prompts.only(PROVOCATIVE) or prompts
    everyday = prompts.only(EVERYDAY) if judged is not prompts else None
    neutral = load_neutral(s.neutral, limit=s.max_neutral, seed=s.seed)
    check, check_name = _check_texts(s, neutral)
    sampling, contrast = judged, None
    if s.contrast == SAMPLED:
        sampling, judged = judged.split(0.5, s.seed)
    else:
        contrast = load_contrast(s.contrast).without(prompts.texts).limited(s.max_texts, s.seed)
    return TextsRead(s, contrast, sampling, judged, everyday, neutral, check, check_name)


def _check_texts(s: RunSettings, neutral: NeutralText) -> tuple[list[str], str]:
    """Everyday texts for the reported cost, none of them seen before, and their name."""
    if s.check is None:
        return neutral.check, f"{neutral.name}, third part"
    other = load_neutral(s.check, limit=s.max_neutral, seed=s.seed)
    seen = {*neutral.fit, *neutral.tune}
    apart = [text for text in other.texts if text not in seen]
    if not apart:
        raise ToxlocError(f"--check {s.check} holds no text that --neutral {s.neutral} does not; give another file.")
    return apart, other.name
