"""A guard model as an evaluator: the probabilities of its verdict, its categories and its refusal field."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...support.names import short_name
from ...support.progress import track
from .base import Evaluator
from .guard_presets import GUARDS, Field, GuardPreset, Pass
from .judge_model import JudgeModel

BATCH = 16


class GuardJudge(Evaluator):
    """Evaluator that asks a guard model whether a text is unsafe, in the format that the guard was trained on.

    The text stands as the assistant's turn after a neutral turn of the user. "toxicity" is the probability of the
    guard's verdict; the other labels are its categories and, for Qwen3Guard and WildGuard, "refusal". All are
    probabilities of the next token at a place of the answer, and nothing is sampled: see `guard_presets`.

    Args:
        preset: name of a guard in `GUARDS`, or your own `GuardPreset`.
        source: a folder, a `.gguf` file or a hub id, as for `load_model`; by default the hub id of the preset.
        categories: whether to score all labels, or only the toxicity, which takes fewer passes for some guards.
        name: name in results; by default the name of the preset, and of the model if a source is given.
        threshold: a text is toxic if its score is at least this threshold.
        device: device of the model; by default CUDA if available.

    Raises:
        ToxlocError: there is no such guard.

    Example:
        >>> judge = GuardJudge("qwen3guard", "path/to/Qwen3Guard-Gen-0.6B")    # doctest: +SKIP
        >>> judge.score(["Good morning"])["refusal"]                           # doctest: +SKIP
        array([0.001])
    """

    other_labels = ("refusal",)
    at_once = 512

    def __init__(
        self,
        preset: str | GuardPreset,
        source: str | None = None,
        *,
        categories: bool = True,
        name: str | None = None,
        threshold: float = 0.5,
        device: str | None = None,
    ):
        if isinstance(preset, str) and preset not in GUARDS:
            raise ToxlocError(f"There is no guard {preset!r}; choose one of {', '.join(GUARDS)}.")
        self.preset = GUARDS[preset] if isinstance(preset, str) else preset
        self.source, self.threshold, self.languages = source or self.preset.source, threshold, self.preset.languages
        self.name = name or (self.preset.name if source is None else f"{self.preset.name}:{short_name(source)}")
        self.passes = self.preset.passes if categories else self.preset.passes[: self.preset.deciding]
        self._scores = dict(self.preset.scores if categories else {"toxicity": self.preset.scores["toxicity"]})
        self.card = {
            "trained_on": f"see the model card of {short_name(self.source)}",
            **self.preset.card,
            "asked": self.preset.prompt.__doc__,
            "passes": len(self.passes),
        }
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model: JudgeModel | None = None
        self._tails: list[_Tail] = []

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the scores: "toxicity", then the verdicts, the refusal and the categories of the guard."""
        return tuple(self._scores)

    def prepare(self) -> None:
        """Load the model and find the tokens of its answers.

        Raises:
            ToxlocError: the model cannot be loaded; it has no chat template, or that of another model; or its
                vocabulary cannot express the guard's answers.
        """
        if self._model is not None:
            return
        model = JudgeModel.load(self.source, self.device)
        if self.preset.own_template and model.tokenizer.chat_template is None:
            raise ToxlocError(
                f"{self.source!r} has no chat template, which contains the question of {self.preset.name}; put "
                "chat_template.jinja of the model's page into the folder, or give a .gguf file with a chat template."
            )
        self._tails = [_Tail(model, self.preset, item) for item in self.passes]
        self.weights = model.fingerprint
        self._model = model

    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        self.prepare()
        assert self._model is not None
        judged = [self._model.truncated(_without_marks(self._model.tokenizer, text)) for text in texts]
        answer: dict[str, dict[str, np.ndarray]] = {}
        for item, tail in zip(self.passes, self._tails, strict=True):
            answer |= self._answers(self._model, item, tail, judged)
        return {label: np.clip(formula(answer), 0, 1) for label, formula in self._scores.items()}

    @torch.inference_mode()
    def _answers(
        self, model: JudgeModel, item: Pass, tail: "_Tail", texts: list[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the probabilities of the options of each field of a pass."""
        probabilities = {name: np.zeros((len(texts), len(tokens))) for name, tokens in tail.fields.items()}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in track(range(0, len(order), BATCH), self.name):
            batch = order[start : start + BATCH]
            prompts = [_encode(model, self.preset.prompt(model.tokenizer, texts[i], item.policy)) for i in batch]
            places = [[len(prompt) - 1 + offset for offset in tail.offsets] for prompt in prompts]
            logits = model.logits([prompt + tail.ids for prompt in prompts], places).double()
            for k, (name, tokens) in enumerate(tail.fields.items()):
                options = torch.stack([logits[:, k, ids].logsumexp(-1) for ids in tokens.values()], 1)
                probabilities[name][batch] = options.softmax(-1).cpu().numpy()
        return {name: dict(zip(tokens, probabilities[name].T, strict=True)) for name, tokens in tail.fields.items()}


class _Tail:
    """The tokens of the answer of a pass, which are the same for every text.

    Attributes:
        ids: tokens of the fixed parts, which follow the prompt.
        offsets: for each field, the number of these tokens before it.
        fields: for each field, the first tokens of each option.
    """

    def __init__(self, model: JudgeModel, preset: GuardPreset, item: Pass):
        text = preset.prompt(model.tokenizer, "Good morning.", item.policy)
        self.ids: list[int] = []
        self.offsets: list[int] = []
        self.fields: dict[str, dict[str, list[int]]] = {}
        for part in item.answer:
            if isinstance(part, Field):
                self.offsets.append(len(self.ids))
                self.fields[part.name] = _first_tokens(model, preset, part, text)
            else:
                self.ids += _continuation(model, text, part)
                text += part
        # Fixed parts after the last field are not needed.
        self.ids = self.ids[: self.offsets[-1]]


def _first_tokens(model: JudgeModel, preset: GuardPreset, field: Field, text: str) -> dict[str, list[int]]:
    """Return the first tokens of each option of a field that follows the text."""
    unknown = model.tokenizer.unk_token_id
    tokens = {
        option: sorted({_continuation(model, text, word)[0] for word in words} - {unknown})
        for option, words in field.options.items()
    }
    for option, ids in tokens.items():
        if not ids:
            raise ToxlocError(
                f"The vocabulary of {model.source!r} has no token for {field.options[option][0].strip()!r}, an answer "
                f"of {preset.name}; give a {preset.name} model with its own tokenizer."
            )
        for other, others in tokens.items():
            if other != option and set(ids) & set(others):
                raise ToxlocError(
                    f"In the vocabulary of {model.source!r}, the answers {field.options[option][0].strip()!r} and "
                    f"{field.options[other][0].strip()!r} of {preset.name} begin with the same token; give a "
                    f"{preset.name} model with its own tokenizer."
                )
    return tokens


def _encode(model: JudgeModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _continuation(model: JudgeModel, text: str, more: str) -> list[int]:
    """Return the tokens that `more` adds to a text; a tokenizer may split a word differently within a text."""
    before, whole = _encode(model, text), _encode(model, text + more)
    return whole[len(before) :] if whole[: len(before)] == before != whole else _encode(model, more)


def _without_marks(tokenizer: Any, text: str) -> str:
    """Return a text without the tokenizer's special tokens, which would end the turn and begin another one."""
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for mark in sorted(marks, key=len, reverse=True):
        text = text.replace(mark, " ")
    return text
