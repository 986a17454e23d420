"""Read the texts of a run, and keep the parts disjoint that must not overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ToxlocError
from ..evaluation.evaluators.base import Evaluator
from ..evaluation.sampled_contrast import contrast_from_model
from ..models.loaded import LoadedModel
from ..support.progress import step
from ..texts.chat import Chat, as_chat_name
from ..texts.contrast import ContrastSet
from ..texts.loading import load_contrast, load_neutral, load_prompts
from ..texts.neutral import NeutralText
from ..texts.prompts import EVERYDAY, PROVOCATIVE, PromptSet
from ..texts.requests import HARMLESS
from .settings import RunSettings

SAMPLED = "sampled"  # value of `contrast`: sample the contrast set from the model
BUILT_IN, REQUESTS = "builtin", "requests"  # prompts: openings, or in conversations requests
HELD_OUT = 0.2  # share of the contrast set that is held out for the knock-outs


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run.

    Attributes:
        contrast: contrast set for the localization and the fits.
        held_out: part of the contrast set on which the knock-outs are measured.
        judged: prompts whose completions are judged: the provocative prompts, or all prompts if none is marked as
            provocative.
        everyday: the everyday prompts; None if there are none.
        neutral: everyday text for the curvature and the budgets.
        check: everyday text on which the reported cost is measured; no other step reads it.
        check_name: source of `check`.
        chat: how the texts became conversations; None for plain text.
        judged_plain: prompts that are judged as plain text besides; None if a fit is for conversations or for plain
            text only.
        check_plain: plain everyday text on which the cost is measured besides; None as `judged_plain`.
    """

    contrast: ContrastSet
    held_out: ContrastSet
    judged: PromptSet
    everyday: PromptSet | None
    neutral: NeutralText
    check: list[str]
    check_name: str
    chat: Chat | None = None
    judged_plain: PromptSet | None = None
    check_plain: list[str] | None = None


@dataclass(frozen=True)
class TextsRead:
    """The texts of a run that come from files; `complete` adds the contrast set if it is sampled from the model.

    Attributes:
        settings: the settings of the run.
        contrast: the contrast set; None if it is to be sampled from the model.
        sampling: prompts from which the contrast set is sampled.
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
        """Return all texts of the run; sample the contrast set from the model if it was not read from a file."""
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
        contrast, held_out = (s.in_form(lm, part) for part in contrast.split(1 - HELD_OUT, s.seed))
        neutral = s.in_form(lm, self.neutral)
        chat = s.conversation(lm.tokenizer)
        s.announce(lm.name, lm.tokenizer)
        if chat is None:
            return RunTexts(contrast, held_out, self.judged, self.everyday, neutral, self.check, self.check_name)
        judged, everyday = self.judged, self.everyday
        if s.prompts == BUILT_IN:
            requests = load_prompts(REQUESTS).limited(s.max_prompts, s.seed)
            judged, everyday = requests.only(PROVOCATIVE) or requests, requests.only(HARMLESS)
        return RunTexts(
            contrast,
            held_out,
            judged.as_chat(lm, chat),
            everyday and everyday.as_chat(lm, chat),
            neutral,
            chat.answers(lm.tokenizer, self.check),
            as_chat_name(self.check_name),
            chat,
            judged_plain=self.judged if s.chat == "both" else None,
            check_plain=self.check if s.chat == "both" else None,
        )


def read_texts(s: RunSettings) -> TextsRead:
    """Read the texts of a run from their files.

    Raises:
        ToxlocError: a file cannot be used, or all texts of `check` are also in `neutral`.
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
    """Return everyday texts for the reported cost that no fit or tuning uses, and the name of their source."""
    if s.check is None:
        return neutral.check, f"{neutral.name}, held-out part"
    other = load_neutral(s.check, limit=s.max_neutral, seed=s.seed)
    seen = {*neutral.fit, *neutral.tune}
    unseen = [text for text in other.texts if text not in seen]
    if not unseen:
        raise ToxlocError(f"All texts of --check {s.check} are also in --neutral {s.neutral}; give another file.")
    return unseen, other.name
