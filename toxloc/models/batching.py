"""Turn texts into padded batches of token ids.

Texts are tokenised once, sorted by length and batched by number of tokens. Padding is masked explicitly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ToxlocError
from ..support.progress import track
from ..texts.chat_text import ChatText
from ..texts.drawing import check_texts
from .loaded import LoadedModel
from .sites import FEED_FORWARD
from .structure import text_config

# Measured on 2 cores: larger batches are slower on a CPU, where new memory costs more than small matrix products.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
LOGITS_PER_BATCH = {"cpu": 1 << 25, "cuda": 1 << 28}  # float32 numbers; limits the memory for large vocabularies
ACTIVATIONS_PER_BATCH = {"cpu": 1 << 31, "cuda": 1 << 34, "offloaded": 1 << 29}  # bytes, for a backward pass
FEWEST_TOKENS = 64
ROUTED = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")  # names of the number of experts of a token


@dataclass(frozen=True)
class Batch:
    """A batch of padded token ids.

    Attributes:
        ids: token ids, padded on the right or on the left.
        mask: 1 at real tokens, 0 at padding. The model attends to real tokens.
        index: position of each row's text in the input.
        own: 1 at the tokens that count, 0 at padding and at the tokens of a chat template (see `ChatText`); by default
            every real token counts.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    index: list[int]
    own: Int[Tensor, "batch pos"] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.own is None:
            object.__setattr__(self, "own", self.mask)

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True at real tokens."""
        return self.mask.bool()

    @property
    def counted(self) -> Bool[Tensor, "batch pos"]:
        """True at the tokens that count: real, and not of a chat template."""
        return self.own.bool()


@dataclass(frozen=True)
class Row:
    """The tokens of a text.

    Attributes:
        ids: token ids.
        own: 1 for every token that counts, 0 for the tokens of a chat template; see `ChatText`.
    """

    ids: list[int]
    own: list[int]

    @property
    def end(self) -> int:
        """Number of tokens up to the last one that counts; of all tokens, if none counts."""
        return len(self.own) - self.own[::-1].index(1) if any(self.own) else len(self.own)


def encode(lm: LoadedModel, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Tokenise texts with the Hugging Face tokenizer.

    Rows begin with BOS if `lm.prepend_bos` is set, and are truncated to `max_length` tokens and to the model's context.
    Of a `ChatText` with spans, the tokens of the template are not part of the length.

    Raises:
        ToxlocError: the texts are a single string, a text is empty or cannot be encoded, or it is a `ChatText` and the
            tokenizer does not tell which characters a token stands for.
    """
    return [row.ids for row in encode_rows(lm, texts, max_length)]


def encode_rows(lm: LoadedModel, texts: Sequence[str], max_length: int) -> list[Row]:
    """Tokenise texts as `encode` does, and tell which of their tokens count.

    A token of a `ChatText` counts if any of its characters lies in a span. In other texts every token counts.
    """
    texts = check_texts(texts)
    every: list[list[int]] = lm.tokenizer(texts, truncation=False, verbose=False)["input_ids"] if texts else []
    rows = []
    for text, ids in zip(texts, every, strict=True):
        own = _in_spans(lm, text, len(ids)) if isinstance(text, ChatText) else [1] * len(ids)
        match _change_of_bos(lm, ids):
            case 1:
                ids, own = [lm.tokenizer.bos_token_id, *ids], [int(not isinstance(text, ChatText)), *own]
            case -1:
                ids, own = ids[1:], own[1:]
        of_template = own.count(0) if any(own) else 0
        end = min(max_length + of_template, lm.context)
        if of_template and not any(own[:end]):
            raise ToxlocError(
                f"An answer begins after the {lm.context:,} tokens that {lm.name} can read; shorten the system message "
                "or the request."
            )
        rows.append(Row(ids[:end], own[:end]))
    return rows


def _in_spans(lm: LoadedModel, text: ChatText, n_tokens: int) -> list[int]:
    """Return 1 for every token with a character in the spans of a text, 0 for the others."""
    if not text.spans:  # a prompt
        return [0] * n_tokens
    if not lm.tokenizer.is_fast:
        raise ToxlocError(
            f"The tokenizer of {lm.name} does not tell which characters a token stands for, so the tokens of its chat "
            "template cannot be left out; use plain text, or a model with a fast tokenizer."
        )
    places = lm.tokenizer(str(text), truncation=False, verbose=False, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(a < end and b > begin for begin, end in text.spans)) for a, b in places]


def _change_of_bos(lm: LoadedModel, row: list[int]) -> int:
    """Return 1 if BOS is to be put before the tokens of a text, and -1 if the first of two is to be dropped.

    A chat template writes BOS into the text, and some tokenizers add a second one.
    """
    bos = lm.tokenizer.bos_token_id
    if bos is not None and row[:2] == [bos, bos]:
        return -1
    return int(lm.prepend_bos and row[:1] != [bos])


def filler(lm: LoadedModel) -> int:
    """Return the token id to pad with. Its value does not matter, because padding is masked."""
    pad_id = lm.tokenizer.pad_token_id
    return int(pad_id if pad_id is not None else lm.tokenizer.eos_token_id or 0)


def pad(
    lm: LoadedModel,
    rows: Sequence[Sequence[int]],
    index: list[int],
    side: str,
    at_least: int = 1,
    own: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Pad rows, and which of their tokens count, on `side` to the same length, at least `at_least`.

    The mask is built from lengths, not from ids, because the padding token can be the end-of-text token.
    """
    width = max(at_least, *map(len, rows))
    ids = torch.full((len(rows), width), filler(lm))
    mask, counted = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
        counted[i, place] = 1 if own is None else torch.tensor(own[i])
    return Batch(ids.to(lm.device), mask.to(lm.device), index, counted.to(lm.device))


def batches(
    lm: LoadedModel,
    texts: Sequence[str],
    *,
    max_length: int = 128,
    tokens: int | None = None,
    gradients: bool = False,
    describe: str = "reading",
) -> Iterator[Batch]:
    """Yield right-padded batches, longest texts first.

    Args:
        lm: the model whose tokenizer and device to use.
        texts: the texts, none empty.
        max_length: number of tokens to keep of each text.
        tokens: largest number of positions per batch, including padding; a longer text is a batch by itself. By default
            a number that suits the device and the size of the vocabulary.
        gradients: whether the batches are for a backward pass, which keeps the activations of all layers in memory. The
            number of positions then also suits the size of the model.
        describe: label of the progress bar.
    """
    rows = encode_rows(lm, texts, max_length)
    for group in track(groups_of_rows(lm, [len(row.ids) for row in rows], tokens, gradients), describe):
        yield pad(lm, [rows[i].ids for i in group], group, "right", own=[rows[i].own for i in group])


def groups_of_rows(
    lm: LoadedModel, lengths: Sequence[int], tokens: int | None = None, gradients: bool = False
) -> list[list[int]]:
    """Group rows of token ids into batches, longest rows first.

    Args:
        lm: the model.
        lengths: number of tokens of each row.
        tokens: see `batches`.
        gradients: see `batches`.

    Returns:
        The indices of the rows of each batch.
    """
    if tokens is None:
        kind = "cpu" if lm.device.type == "cpu" else "cuda"
        tokens = min(TOKENS_PER_BATCH[kind], LOGITS_PER_BATCH[kind] // lm.d_vocab)
        if gradients:
            limit = ACTIVATIONS_PER_BATCH["offloaded" if lm.is_offloaded else kind]
            tokens = min(tokens, max(FEWEST_TOKENS, limit // activation_bytes(lm)))
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def activation_bytes(lm: LoadedModel) -> int:
    """Estimate the bytes that a backward pass needs for each token: the activations of all layers.

    A block keeps about 16 vectors of the width of the residual stream, and 5 of the width of its MLP or of the experts
    that a token is routed to.
    """
    config = None if lm.hf is None else text_config(lm.hf)
    routed = next((k for name in ROUTED if isinstance(k := getattr(config, name, None), int)), 1)
    width = sum(
        lm.at(site).d_in * (1 if site.expert is None else routed)
        for site in lm.sites(*FEED_FORWARD)
        if not site.expert  # one for all experts of a block
    )
    return lm.dtype.itemsize * (16 * lm.n_layers * lm.d_model + 5 * width)


def decode_token(lm: LoadedModel, token: int) -> str:
    """Decode one token, and keep the leading space that SentencePiece decoders strip at the beginning of a text."""
    piece: str = lm.tokenizer.decode([token])
    spaced = (lm.tokenizer.convert_ids_to_tokens(token) or "").startswith("▁")
    return " " + piece if spaced and piece[:1] != " " else piece
