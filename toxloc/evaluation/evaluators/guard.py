"""toxloc-guard: the small toxicity classifier that comes with the package."""

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

FOLDER = ASSETS / "models" / "toxloc-guard"
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
    """A classifier with the architecture of GPT-2 and 4 layers, trained on public comments labelled toxic or not.

    The threshold is calibrated so that about 1% of everyday completions are called toxic; `calibration.json` in the
    folder of the weights names the texts and the command. The classifier does not recognise most implicit hate.
    """

    name = "toxloc-guard"
    languages = ("en",)

    def __init__(self) -> None:
        calibration = json.loads((FOLDER / "calibration.json").read_text(encoding="utf-8"))
        self.threshold = float(calibration["threshold"])
        self.card = {
            "trained_on": "public comments labelled toxic or neutral, in English",
            "blind_to": "implicit hate and stereotypes without abusive words",
            "calibration": calibration,
        }

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        with quiet():
            return AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=torch.float32).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(FOLDER)

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return the probability of the class "toxic" for each text."""
        scores = np.zeros(len(texts))
        cleaned = [normalise(text) for text in texts]
        order = sorted((i for i, text in enumerate(cleaned) if text), key=lambda i: len(cleaned[i]))
        end = self._tokenizer.eos_token_id
        for start in track(range(0, len(order), BATCH), "toxloc-guard"):
            batch = order[start : start + BATCH]
            rows = [[*row[:MAX_TOKENS], end] for row in self._tokenizer([cleaned[i] for i in batch])["input_ids"]]
            ids = torch.full((len(rows), max(map(len, rows))), end)
            mask = torch.zeros_like(ids)
            for k, row in enumerate(rows):
                ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
            hidden = self._model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
            last = hidden[torch.arange(len(rows)), mask.sum(1) - 1]
            scores[batch] = self._model.score(last).softmax(-1)[:, 1].double().numpy()
        return {"toxicity": scores}
