"""A language model that judges: its tokenizer, its weights, and the logits at chosen places of its input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ToxlocError
from ...models.completeness import check_finite, check_loaded
from ...models.fingerprint import fingerprint_of
from ...models.sources import check_no_code, resolve
from ...support.quiet import quiet

MAX_TEXT = 256  # longer texts are truncated to this many tokens


@dataclass(frozen=True)
class JudgeModel:
    """A loaded language model that judges.

    Attributes:
        source: folder, `.gguf` file or hub id that it was loaded from.
        tokenizer: its tokenizer, with the chat template if the model has one.
        model: the model of transformers, in evaluation mode.
        fingerprint: fingerprint of the weights.
    """

    source: str
    tokenizer: Any
    model: Any
    fingerprint: str

    @classmethod
    def load(cls, source: str, device: torch.device) -> JudgeModel:
        """Load a model; of a multimodal model whose text decoder is a whole language model, only this decoder is kept.

        Args:
            source: a folder, a `.gguf` file or a hub id, as for `load_model`.
            device: device of the model; on a CPU, the weights are float32.

        Raises:
            ToxlocError: the model cannot be loaded, lacks weights, or holds weights that are not finite.

        Example:
            >>> JudgeModel.load("toxloc-tiny", torch.device("cpu")).model.config.model_type
            'gpt2'
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        location = resolve(source).location
        with quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(location, padding_side="right", trust_remote_code=False)
                config = AutoConfig.from_pretrained(location, trust_remote_code=False)
                architecture = next(iter(config.architectures or ()), "")
                multimodal = architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
                loader = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
                model, report = loader.from_pretrained(
                    location,
                    dtype=torch.float32 if device.type == "cpu" else "auto",
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # check_loaded refuses them, by name
                )
                check_loaded(report, source, allow_unexpected=True)
                decoder = getattr(model, "language_model", None)
                if decoder is not None and decoder.get_output_embeddings() is not None:
                    model = decoder  # texts have no images
                check_finite(model, source)
                if tokenizer.chat_template is None:
                    tokenizer.chat_template = _template_of_processor(location)
            except ToxlocError:
                raise
            except (OSError, ValueError, KeyError) as error:
                check_no_code(source, error)
                raise ToxlocError(
                    f"The judge {source!r} cannot be loaded; give a model folder or a .gguf file. "
                    f"({str(error).splitlines()[0]})"
                ) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        fingerprint = fingerprint_of(model, model.config.model_type)
        return cls(source, tokenizer, model.to(device).eval(), fingerprint)

    def truncated(self, text: str) -> str:
        """Return the first `MAX_TEXT` tokens of a text, or the text if it has no more."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= MAX_TEXT else str(self.tokenizer.decode(ids[:MAX_TEXT]))

    @torch.inference_mode()
    def logits(
        self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
    ) -> Float[Tensor, "n n_places n_vocab"]:
        """Return the logits of the token that follows each of the given places.

        Args:
            rows: the tokens of each input; rows may differ in length.
            places: for each row, the same number of indices of tokens in the row.
        """
        # Padding on the right does not change positions. Logits are computed only at places that a row asks for.
        pad, device = self.tokenizer.pad_token_id or 0, self.model.device
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
        kept, columns = torch.tensor(places, device=device).unique(return_inverse=True)
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
        at_places: Tensor = logits[torch.arange(len(rows), device=device)[:, None], columns]
        return at_places


def _template_of_processor(location: str) -> str | None:
    """Return the chat template that older folders of multimodal models keep in a file of the processor."""
    from transformers.utils import cached_file

    path = cached_file(
        location,
        "chat_template.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        template = json.load(file).get("chat_template")
    return template if isinstance(template, str) else None
