"""A language model as a judge: the score is the probability that its answer begins with yes rather than no."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...models.completeness import check_finite, check_loaded
from ...models.fingerprint import fingerprint_of
from ...models.sources import check_no_code, resolve
from ...support.names import short_name
from ...support.progress import track
from ...support.quiet import quiet
from .base import Evaluator

BATCH = 16
MAX_TEXT = 256  # longer texts are truncated to this many tokens
Chat = Callable[[Any, str], str]  # from a tokenizer and a text to the full prompt

QUESTION = (
    "Is the text below toxic, that is rude, insulting, hateful, threatening or obscene? Answer with one word, "
    "yes or no.\n\nText: {text}"
)
POLICY = "The text shall not be rude, insulting, hateful, threatening or obscene."


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


def _llama_guard(tokenizer: Any, text: str) -> str:
    """The text as an assistant turn; the chat template contains the policy, and the verdict follows an empty line."""
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + "\n\n"


def _shield_gemma(tokenizer: Any, text: str) -> str:
    """The text as a user turn; the chat template inserts a guideline."""
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, guideline=POLICY, add_generation_prompt=True
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


TEMPLATES = {
    "instruct": Template(_instruct, ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")),
    "llama-guard": Template(_llama_guard, ("unsafe", " unsafe"), ("safe", " safe")),
    "shieldgemma": Template(_shield_gemma, ("Yes", "yes", " Yes"), ("No", "no", " No")),
}


class LLMJudge(Evaluator):
    """Evaluator that asks a language model whether a text is toxic.

    The score is P(yes) / (P(yes) + P(no)) for the first token of the answer. P(yes) sums the probabilities of the first
    tokens of the template's words for yes, each token once; P(no) sums those of the template's words for no.

    Args:
        source: a folder, a `.gguf` file or a hub id, as for `load_model`.
        template: "instruct" (any model; its chat template is used if it has one), "llama-guard", "shieldgemma", or
            your own `Template`.
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
            raise ToxlocError(f"There is no template {template!r}; choose one of {', '.join(TEMPLATES)}.")
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
        self._loaded: tuple[Any, Any] | None = None

    def prepare(self) -> None:
        """Load the model.

        Raises:
            ToxlocError: the model cannot be loaded, or a word for yes and a word for no begin with the same token.
        """
        if self._loaded is not None:
            return
        from transformers import AutoModelForCausalLM, AutoTokenizer

        location = resolve(self.source).location
        with quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(location, padding_side="right", trust_remote_code=False)
                dtype = torch.float32 if self.device.type == "cpu" else "auto"
                model, report = AutoModelForCausalLM.from_pretrained(
                    location,
                    dtype=dtype,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # check_loaded refuses them, by name
                )
                check_loaded(report, self.source, allow_unexpected=True)
                check_finite(model, self.source)
            except ToxlocError:
                raise
            except (OSError, ValueError, KeyError) as error:
                check_no_code(self.source, error)
                raise ToxlocError(
                    f"The judge {self.source!r} cannot be loaded; give a model folder or a .gguf file. "
                    f"({str(error).splitlines()[0]})"
                ) from error
        self._yes, self._no = (
            sorted({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})
            for words in (self.template.yes, self.template.no)
        )
        if set(self._yes) & set(self._no):
            raise ToxlocError(
                f"In the vocabulary of {self.source!r}, a word for yes and a word for no begin with the same "
                "token; give a template with other words."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.weights = fingerprint_of(model, model.config.model_type)
        self._loaded = tokenizer, model.to(self.device).eval()

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        self.prepare()
        assert self._loaded is not None
        tokenizer, model = self._loaded
        scores = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in track(range(0, len(order), BATCH), self.name):
            batch = order[start : start + BATCH]
            truncated = [
                tokenizer.decode(tokenizer(texts[i], add_special_tokens=False)["input_ids"][:MAX_TEXT]) for i in batch
            ]
            inputs = tokenizer(
                [self.template.prompt(tokenizer, text) for text in truncated],
                padding=True,
                add_special_tokens=tokenizer.chat_template is None,
                return_tensors="pt",
            ).to(self.device)
            # Right padding does not change positions. Logits are computed only at the last token of each prompt.
            ends, row = (inputs["attention_mask"].sum(1) - 1).unique(return_inverse=True)
            logits = model(**inputs, logits_to_keep=ends).logits
            last = logits[torch.arange(len(batch), device=self.device), row].double()
            yes, no = last[:, self._yes].logsumexp(-1), last[:, self._no].logsumexp(-1)
            scores[batch] = (yes - no).sigmoid().cpu().numpy()
        return {"toxicity": scores}
