"""Evaluators from sequence classifiers of transformers, in a folder or on the hub."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...models.completeness import check_finite, check_loaded
from ...models.fingerprint import fingerprint_of
from ...models.sources import check_no_code
from ...support.arguments import as_list
from ...support.names import short_name
from ...support.progress import track
from ...support.quiet import quiet
from .base import Evaluator

BATCH = 64
MAX_TOKENS = 512
# Names of toxic classes, in lower-case letters only.
TOXIC = {
    "hate",
    "hateful",
    "hatespeech",
    "offensive",
    "offensivelanguage",
    "abusive",
    "abuse",
    "profanity",
    "insult",
    "unsafe",
}
# Class names that toxloc replaces by another name.
RENAMED = {"toxic": "toxicity", "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


class Classifier(Evaluator):
    """Evaluator from a sequence classifier in the format of transformers: config.json, weights and tokenizer.

    The probabilities of classes are a softmax of the logits if the classes exclude each other, and a sigmoid of each
    logit if they do not (`problem_type` of the config is "multi_label_classification") or if there is only one class.
    `score` returns the probability of every class under its name, and "toxicity": the probability of the class called
    "toxic" or "toxicity"; without such a class, the sum (softmax) or the maximum (sigmoid) over the toxic classes.

    Args:
        source: folder or hub id.
        name: name in results; by default the last part of the source.
        toxic: names of the toxic classes; by default the classes with a usual name ("toxic", "hate", ...).
        unnamed: index of the toxic class if the classes have no names, but are called LABEL_0, LABEL_1 and so on.
        threshold: a text is toxic if its score is at least this threshold.
        card: training data and blind spots of the classifier.
        languages: ISO 639-1 codes of the classifier's languages; None if they are unknown.
        device: device of the model; by default CUDA if available.

    Example:
        >>> judge = Classifier("path/to/classifier", toxic=["LABEL_1"])     # doctest: +SKIP
        >>> judge.score(["Good morning"])["toxicity"]                       # doctest: +SKIP
        array([0.002])
    """

    def __init__(
        self,
        source: str,
        *,
        name: str | None = None,
        toxic: Sequence[str] | None = None,
        unnamed: int | None = None,
        threshold: float = 0.5,
        card: dict[str, Any] | None = None,
        languages: Sequence[str] | None = None,
        device: str | None = None,
    ):
        self.source, self.threshold = source, threshold
        self.toxic = None if toxic is None else as_list(toxic, "the toxic classes")
        self.unnamed = unnamed
        self.name = name or short_name(source)
        self.card = card or {"trained_on": f"see the model card of {self.name}", "blind_to": "unknown"}
        self.languages = None if languages is None else tuple(as_list(languages, "the languages"))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._loaded: tuple[Any, Any] | None = None
        self._classes: list[str] = []

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the scores: "toxicity", then every class."""
        self.prepare()
        return tuple(dict.fromkeys(("toxicity", *self._classes)))

    def prepare(self) -> None:
        """Load the model and determine its toxic classes.

        Raises:
            ToxlocError: the classifier cannot be loaded, `toxic` names a class that the classifier does not have, or
                `toxic` is missing and no class has a usual name.
        """
        if self._loaded is not None:
            return
        with quiet():
            try:
                tokenizer, model = self._load()
            except ToxlocError:
                raise
            except (OSError, ValueError, KeyError) as error:
                check_no_code(self.source, error)
                raise ToxlocError(
                    f"The classifier {self.source!r} is not a folder with config.json, weights and "
                    "tokenizer, and could not be loaded from the hub; download it on a connected machine "
                    f"and give the folder. ({str(error).splitlines()[0]})"
                ) from error
        classes = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        wanted = set(
            self.toxic
            or [name for name in classes if _letters(name) in ("toxic", "toxicity")]
            or [name for name in classes if _letters(name) in TOXIC]
            or [name for name in classes if name == f"LABEL_{self.unnamed}"]
        )
        if not wanted or wanted - set(classes):
            raise ToxlocError(
                f"{self.source!r} has the classes {', '.join(classes)}; "
                + (
                    f"none is called {', '.join(sorted(wanted - set(classes)))}."
                    if wanted
                    else "name the toxic classes (toxic=)."
                )
            )
        self._toxic = [i for i, name in enumerate(classes) if name in wanted]
        self._classes = [RENAMED.get(name, name) for name in classes]
        self._independent = model.config.problem_type == "multi_label_classification" or len(classes) == 1
        self.weights = fingerprint_of(model, model.config.model_type)
        self._loaded = tokenizer, model.to(self.device).eval()

    def _load(self) -> tuple[Any, Any]:
        """Return the tokenizer and the model."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            self.source,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_loaded refuses them, by name
        )
        check_loaded(report, self.source, allow_unexpected=True)
        check_finite(model, self.source)
        return tokenizer, model

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        self.prepare()
        assert self._loaded is not None
        tokenizer, model = self._loaded
        max_length = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS) - 2)
        probabilities = np.zeros((len(texts), len(self._classes)))
        # transformers' text-classification pipeline gives the same scores (to 1e-7) but takes 1.4 to 2.1 times as long.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in track(range(0, len(order), BATCH), self.name):
            batch = order[start : start + BATCH]
            inputs = tokenizer(
                [texts[i] for i in batch], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
            ).to(self.device)
            logits = model(**inputs).logits.double()
            probabilities[batch] = (logits.sigmoid() if self._independent else logits.softmax(-1)).cpu().numpy()
        toxic = probabilities[:, self._toxic]
        toxicity = toxic.max(1) if self._independent else toxic.sum(1).clip(0, 1)
        return dict(zip(self._classes, probabilities.T, strict=True)) | {"toxicity": toxicity}


def _letters(label: str) -> str:
    return re.sub(r"[^a-z]", "", label.lower())
