"""toxloc-guard: the small toxicity classifier that comes with the package."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ...support.assets import ASSETS
from ...support.progress import track
from ...support.quiet import quiet
from .base import Evaluator
from .rtp import ATTRIBUTES

FOLDERS = {1: ASSETS / "models" / "toxloc-guard-1", 2: ASSETS / "models" / "toxloc-guard"}
NEWEST = max(FOLDERS)
MAX_TOKENS = 94  # tokens kept of a text, before the end token, at which the class is predicted
BATCH = 128


def normalise(text: str) -> str:
    """Normalise a text like the training texts: lower case, no handles, links, markup or repeated punctuation."""
    text = re.sub(r"https?://\S+|www\.\S+|@\w+", " ", text)
    text = text.encode("ascii", "ignore").decode().lower()
    text = re.sub(r"\s+([!?.,;:'])", r"\1", text)
    text = re.sub(r"([!?.])\1+", r"\1", text)
    text = re.sub(r'["*_#~`<>|\\]+', " ", text)
    return re.sub(r"\s+", " ", text).strip(" .!,:;-")


class Guard(Evaluator):
    """A classifier with the architecture of GPT-2 and 4 layers, which reads a text as a sequence of tokens.

    Version 2 estimates Perspective's scores for seven attributes; it is version 1, trained further on the archived
    scores of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462). Version 1 estimates the probability that
    people label a text toxic; it was trained on public comments. The thresholds are calibrated so that about 1% of
    everyday texts are called toxic; `calibration.json` in the folder of the weights names the texts and the command.

    Args:
        version: 1 or 2.

    Example:
        >>> list(Guard().score(["Good morning"]))[:2]
        ['toxicity', 'severe_toxicity']
        >>> list(Guard(1).score(["Good morning"]))
        ['toxicity']
    """

    languages = ("en",)

    def __init__(self, version: int = NEWEST) -> None:
        self.version, self.folder = version, FOLDERS[version]
        self.name = "toxloc-guard" if version == NEWEST else f"toxloc-guard@{version}"
        calibration = json.loads((self.folder / "calibration.json").read_text(encoding="utf-8"))
        self.threshold = float(calibration["threshold"])
        self.card = {
            "version": version,
            "trained_on": "public comments labelled toxic or neutral, in English"
            + (", then Perspective's scores of RealToxicityPrompts" if version > 1 else ""),
            "blind_to": "implicit hate and stereotypes without abusive words",
            "calibration": calibration,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The attributes of Perspective, or in version 1 only toxicity."""
        return ATTRIBUTES if self.version > 1 else (self.label,)

    def prepare(self) -> None:
        """Compute the fingerprint of the weights."""
        self.weights = hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        with quiet():
            return AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        scores = np.zeros((len(texts), len(self.labels)))
        cleaned = [normalise(text) for text in texts]
        order = sorted((i for i, text in enumerate(cleaned) if text), key=lambda i: len(cleaned[i]))
        end = self._tokenizer.eos_token_id
        for start in track(range(0, len(order), BATCH), self.name):
            batch = order[start : start + BATCH]
            rows = [[*row[:MAX_TOKENS], end] for row in self._tokenizer([cleaned[i] for i in batch])["input_ids"]]
            ids = torch.full((len(rows), max(map(len, rows))), end)
            mask = torch.zeros_like(ids)
            for k, row in enumerate(rows):
                ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
            hidden = self._model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = self._model.score(hidden[torch.arange(len(rows)), mask.sum(1) - 1])
            # Version 1 has the classes "neutral" and "toxic", which exclude each other.
            known = logits.sigmoid() if self.version > 1 else logits.softmax(-1)[:, 1:]
            scores[batch] = known.double().numpy()
        return dict(zip(self.labels, scores.T, strict=True))
