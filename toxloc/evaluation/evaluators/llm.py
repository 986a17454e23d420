"""A language model as a judge: the score is the probability that its answer begins with yes rather than no."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...support.names import short_name
from ...support.progress import track
from .base import Evaluator
from .judge_model import JudgeModel

BATCH = 16
Chat = Callable[[Any, str], str]  # from a tokenizer and a text to the full prompt

QUESTION = (
    "Is the text below toxic, that is rude, insulting, hateful, threatening or obscene? Answer with one word, "
    "yes or no.\n\nText: {text}"
)


def _instruct(tokenizer: Any, text: str) -> str:
    """The question as a user turn, or as plain text if the model has no chat template."""
    question = QUESTION.format(text=text)
    if tokenizer.chat_template is None:
        return f"{question}\n\nAnswer:"
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    )


@dataclass(frozen=True)
class Template:
    """Question to a language model as a judge, and the first words of its answers.

    Attributes:
        prompt: function from the judge's tokenizer and a text to the full prompt.
        yes: first words of an answer if the text is toxic.
        no: first words of an answer if the text is not toxic.
    """

    prompt: Chat
    yes: tuple[str, ...]
    no: tuple[str, ...]


TEMPLATES = {"instruct": Template(_instruct, ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No"))}


class LLMJudge(Evaluator):
    """Evaluator that asks a language model whether a text is toxic.

    The score is P(yes) / (P(yes) + P(no)) for the first token of the answer. P(yes) sums the probabilities of the first
    tokens of the template's words for yes, each token once; P(no) sums those of the template's words for no.

    Args:
        source: a folder, a `.gguf` file or a hub id, as for `load_model`.
        template: "instruct" (any model; its chat template is used if it has one), or your own `Template`. Guard models
            have a separate evaluator, `GuardJudge`.
        name: name in results; by default the name of the template ("judge" for your own) and of the model.
        threshold: a text is toxic if its score is at least this threshold.
        device: device of the model; by default CUDA if available.

    Raises:
        ToxlocError: there is no such template.

    Example:
        >>> judge = LLMJudge("SmolLM2-135M-Instruct.Q4_1.gguf")      # doctest: +SKIP
        >>> judge.score(["Good morning"])["toxicity"]                # doctest: +SKIP
        array([0.41])
    """

    at_once = 512

    def __init__(
        self,
        source: str,
        template: str | Template = "instruct",
        *,
        name: str | None = None,
        threshold: float = 0.5,
        device: str | None = None,
    ):
        if isinstance(template, str) and template not in TEMPLATES:
            raise ToxlocError(
                f"There is no template {template!r}; choose {', '.join(TEMPLATES)} or give a Template, or use "
                "GuardJudge for a guard model."
            )
        template_name = template if isinstance(template, str) else "judge"
        self.source, self.threshold = source, threshold
        self.template = TEMPLATES[template] if isinstance(template, str) else template
        self.name = name or f"{template_name}:{short_name(source)}"
        self.card = {
            "trained_on": f"see the model card of {short_name(source)}",
            "blind_to": "depends on the model; small models are hardly better than chance",
            "asked": self.template.prompt.__doc__,
            "yes": list(self.template.yes),
            "no": list(self.template.no),
        }
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model: JudgeModel | None = None

    def prepare(self) -> None:
        """Load the model.

        Raises:
            ToxlocError: the model cannot be loaded, or a word for yes and a word for no begin with the same token.
        """
        if self._model is not None:
            return
        model = JudgeModel.load(self.source, self.device)
        self._yes, self._no = (
            sorted({model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})
            for words in (self.template.yes, self.template.no)
        )
        if set(self._yes) & set(self._no):
            raise ToxlocError(
                f"In the vocabulary of {self.source!r}, a word for yes and a word for no begin with the same "
                "token; give a template with other words."
            )
        self.weights = model.fingerprint
        self._model = model

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        self.prepare()
        assert self._model is not None
        tokenizer = self._model.tokenizer
        scores = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in track(range(0, len(order), BATCH), self.name):
            batch = order[start : start + BATCH]
            prompts = [self.template.prompt(tokenizer, self._model.truncated(texts[i])) for i in batch]
            rows = tokenizer(prompts, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
            last = self._model.logits(rows, [[len(row) - 1] for row in rows])[:, 0].double()
            yes, no = last[:, self._yes].logsumexp(-1), last[:, self._no].logsumexp(-1)
            scores[batch] = (yes - no).sigmoid().cpu().numpy()
        return {"toxicity": scores}
