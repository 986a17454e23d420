"""Texts to padded batches of token ids: tokenised once, sorted by length, batched by tokens, masked explicitly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ToxlocError
from ..support.progress import track
from .loaded import LoadedModel

if TYPE_CHECKING:
    pass

# Measured on 2 cores: larger batches are slower on a CPU, where fresh memory costs more than small matrices do.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
LOGITS_PER_BATCH = {"cpu": 1 << 25, "cuda": 1 << 28}  # float32 numbers: bounds the memory of large vocabularies


@dataclass(frozen=True)
class Batch:
    """Right- or left-padded token ids; `mask` is 1 at real tokens, `index` gives each row's place in the input."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    index: list[int]

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True at real tokens."""
        return self.mask.bool()


def encode(lm: LoadedModel, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Tokenise with the Hugging Face tokenizer, begin with BOS if the model's texts do, cut at `max_length`.

    Raises:
        ToxlocError: a text is empty.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise ToxlocError(f"Text number {i} is empty; remove empty rows.")
    bos = lm.tokenizer.bos_token_id
    rows: list[list[int]] = lm.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
    if lm.prepend_bos:
        rows = [row if row[:1] == [bos] else [bos, *row] for row in rows]
    if bos is not None:  # chat templates write it into the text, and some tokenizers then add another
        rows = [row[1:] if row[:2] == [bos, bos] else row for row in rows]
    return [row[: min(max_length, lm.context)] for row in rows]


def filler(lm: LoadedModel) -> int:
    """Return the token id to pad with; which one does not matter, since padding is masked."""
    pad_id = lm.tokenizer.pad_token_id
    return int(pad_id if pad_id is not None else lm.tokenizer.eos_token_id or 0)


def pad(lm: LoadedModel, rows: Sequence[Sequence[int]], index: list[int], side: str, at_least: int = 1) -> Batch:
    """Pad rows to one length on `side`. The mask is built from lengths, never from ids: pad may equal eos."""
    width = max(at_least, *map(len, rows))
    ids = torch.full((len(rows), width), filler(lm))
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return Batch(ids.to(lm.device), mask.to(lm.device), index)


def batches(
    lm: LoadedModel,
    texts: Sequence[str],
    *,
    max_length: int = 128,
    tokens: int | None = None,
    describe: str = "reading",
) -> Iterator[Batch]:
    """Yield right-padded batches of at most `tokens` positions, longest texts first.

    Args:
        lm: whose tokenizer and device to use.
        texts: none of them empty.
        max_length: tokens kept of each text.
        tokens: positions per batch, padding included; by default what suits the device and the vocabulary.
        describe: label of the progress bar.
    """
    if tokens is None:
        kind = "cpu" if lm.device.type == "cpu" else "cuda"
        tokens = min(TOKENS_PER_BATCH[kind], LOGITS_PER_BATCH[kind] // lm.d_vocab)
    rows = encode(lm, texts, max_length)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    groups: list[list[int]] = []
    for i in order:
        if not groups or (len(groups[-1]) + 1) * len(rows[groups[-1][0]]) > tokens:
            groups.append([])
        groups[-1].append(i)
    for group in track(groups, describe):
        yield pad(lm, [rows[i] for i in group], group, "right")


def decode_token(lm: LoadedModel, token: int) -> str:
    """Decode one token, with the space before a word that SentencePiece decoders strip where a text begins."""
    piece: str = lm.tokenizer.decode([token])
    spaced = (lm.tokenizer.convert_ids_to_tokens(token) or "").startswith("▁")
    return " " + piece if spaced and piece[:1] != " " else piece
