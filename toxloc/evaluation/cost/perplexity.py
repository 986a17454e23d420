"""Perplexity and likelihood of texts."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float64

from ...errors import ToxlocError
from ...models.batching import batches, encode, pad
from ...models.likelihood import predicting, summed_nll, targets, token_nll
from ...models.loaded import LoadedModel
from ...texts.drawing import check_texts

TOKENS_AT_ONCE = 4096  # tokens of overlapping windows per batch


@torch.inference_mode()
def mean_nll(lm: LoadedModel, texts: Sequence[str], max_length: int = 256, describe: str = "perplexity") -> float:
    """Mean negative log-likelihood per predicted token, in nats, under the model in its current state.

    Each text is read alone from its first token, with padding masked. The perplexity is exp of the result.

    Args:
        lm: the model.
        texts: texts to read, none of them empty.
        max_length: largest number of tokens read of each text.
        describe: label of the progress bar.

    Raises:
        ToxlocError: no text has at least two tokens.

    Example:
        >>> mean_nll(load_model(), ["The cat sat on the mat."])     # doctest: +SKIP
        4.1
    """
    total, count = 0.0, 0
    for batch in batches(lm, texts, max_length=max_length, describe=describe):
        loss, n = summed_nll(lm, batch)
        total, count = total + loss.item(), count + n
    return total / check_count(count)


@torch.inference_mode()
def nll_per_text(
    lm: LoadedModel, texts: Sequence[str], max_length: int = 128
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Summed negative log-likelihood of each text, in nats, and its number of predicted tokens.

    Args:
        lm: the model in its current state.
        texts: texts to read, none of them empty.
        max_length: largest number of tokens read of each text.
    """
    texts = check_texts(texts)
    nll, predicted = np.zeros(len(texts)), np.zeros(len(texts))
    for batch in batches(lm, texts, max_length=max_length, describe="NLL"):
        losses = token_nll(lm, predicting(lm, batch), targets(batch))
        counts = batch.own[:, 1:].sum(1).cpu()
        nll[batch.index] = [part.double().sum().item() for part in losses.cpu().split(counts.tolist())]
        predicted[batch.index] = counts.numpy()
    return nll, predicted


@torch.inference_mode()
def strided_perplexity(
    lm: LoadedModel, texts: Sequence[str], *, window: int | None = None, stride: int | None = None
) -> float:
    """Perplexity of texts read as one document, in overlapping windows.

    The texts are joined by blank lines and tokenised together. A window has `window` tokens of the document, after BOS
    if the model's texts begin with BOS. The next window begins `stride` tokens later, and only its tokens that are in
    no earlier window are counted. So every token after the first window is predicted from at least `window - stride`
    tokens. A token without any token before it, not even BOS, is not counted.

    Args:
        lm: the model in its current state.
        texts: texts in the order of the document.
        window: tokens in a window; by default the model's context (minus BOS), or 1,024 if that is less.
        stride: tokens between the beginnings of two windows; by default half of the window.

    Raises:
        ToxlocError: the window or the stride is out of range, or no token of the document can be predicted.

    Example:
        >>> strided_perplexity(lm, wikitext, window=1024, stride=512)     # doctest: +SKIP
        29.3
    """
    first = int(lm.prepend_bos)
    room = lm.context - first
    window = min(1024, room) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= room:
        raise ToxlocError(f"window={window} is out of range for {lm.name}; give 2 to {room} tokens.")
    if not 1 <= stride <= window:
        raise ToxlocError(f"stride={stride} is out of range; give 1 to {window} tokens, the length of the window.")
    document = "\n\n".join(check_texts(texts, may_be_blank=True))
    row = lm.tokenizer(document, truncation=False, verbose=False, add_special_tokens=False)["input_ids"]
    starts = range(0, max(1, len(row) - window + stride), stride)
    rows = [[*[lm.tokenizer.bos_token_id] * first, *row[start : start + window]] for start in starts]
    fresh = [len(rows[0])] + [min(window, len(row) - start) - (window - stride) for start in starts[1:]]
    total, count, size = 0.0, 0, max(1, TOKENS_AT_ONCE // window)
    for at in range(0, len(rows), size):
        batch = pad(lm, rows[at : at + size], list(range(at, min(at + size, len(rows)))), "right")
        losses = token_nll(lm, predicting(lm, batch), targets(batch)).double()
        for window_losses, counted in zip(
            losses.split((batch.mask.sum(1) - 1).tolist()), fresh[at : at + size], strict=True
        ):
            # A window has a loss for every token but the first.
            new = window_losses[max(0, len(window_losses) - counted) :]
            total, count = total + new.sum().item(), count + len(new)
    return safe_exp(total / check_count(count))


@torch.inference_mode()
def completion_perplexity(lm: LoadedModel, prompts: Sequence[str], completions: Sequence[Sequence[str]]) -> float:
    """Perplexity of completions after their prompts, under the model without its interventions.

    Only the first non-empty completion of each prompt is read, and only if it fits into the context together with its
    prompt. The result is nan if no completion can be read.

    Args:
        lm: the model.
        prompts: the prompts.
        completions: the completions of each prompt.

    Example:
        >>> completion_perplexity(lm, ["The weather is"], [[" a bit cold."]])    # doctest: +SKIP
        21.7
    """
    pairs = [
        (prompt, first)
        for prompt, texts in zip(prompts, completions, strict=True)
        if (first := next((text for text in texts if text.strip()), None))
    ]
    pairs = [pairs[i] for i in np.flatnonzero(fits(lm, *zip(*pairs, strict=True)))] if pairs else []
    if not pairs:
        return math.nan
    with lm.unedited():
        nll, count = nll_of_endings(lm, [prompt for prompt, _ in pairs], [text for _, text in pairs])
    return safe_exp(float(nll.sum() / max(1.0, count.sum())))


def fits(lm: LoadedModel, beginnings: Sequence[str], endings: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return whether each beginning with its ending is shorter than the context, so that `nll_of_endings` reads it."""
    rows = encode(lm, [beginning + ending for beginning, ending in zip(beginnings, endings, strict=True)], lm.context)
    return np.array([len(row) < lm.context for row in rows], dtype=bool)


@torch.inference_mode()
def nll_of_endings(
    lm: LoadedModel, beginnings: Sequence[str], endings: Sequence[str], describe: str = "endings"
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Summed negative log-likelihood of each ending after its beginning, in nats, and its number of tokens.

    Beginning and ending are tokenised together; if the beginning alone has k tokens, the tokens after the first k
    belong to the ending.

    Args:
        lm: the model in its current state.
        beginnings: beginnings of the texts.
        endings: endings of the texts, as many as beginnings.
        describe: label of the progress bar.

    Raises:
        ToxlocError: a beginning with its ending has as many tokens as the model's context, or more.
    """
    whole = [beginning + ending for beginning, ending in zip(beginnings, endings, strict=True)]
    if not fits(lm, beginnings, endings).all():
        raise ToxlocError(
            f"A text with its ending fills the context of {lm.name}, {lm.context} tokens; remove such texts."
        )
    known = [len(row) for row in encode(lm, beginnings, lm.context)]
    nll, count = np.zeros(len(whole)), np.zeros(len(whole))
    for batch in batches(lm, whole, max_length=lm.context, describe=describe):
        begins = torch.tensor([known[i] for i in batch.index], device=lm.device)
        place = torch.arange(1, batch.ids.shape[1], device=lm.device)
        ending = (place >= begins[:, None]) & batch.real[:, 1:]
        hidden = lm.forward_hidden(batch.ids, batch.mask)[:, :-1][ending]
        losses = torch.zeros(ending.shape, device=lm.device)
        losses[ending] = token_nll(lm, hidden, batch.ids[:, 1:][ending])
        nll[batch.index] = losses.double().sum(1).cpu().numpy()
        count[batch.index] = ending.sum(1).cpu().numpy()
    return nll, count


def safe_exp(value: float) -> float:
    """Return exp(value), or inf if it is too large for a float, as for a destroyed model."""
    return math.exp(value) if value < 700 else math.inf


def check_count(n_tokens: int) -> int:
    """Return the number of predicted tokens, if it is not 0.

    Raises:
        ToxlocError: the number is 0.
    """
    if n_tokens == 0:
        raise ToxlocError("No text has at least two tokens, so the perplexity is undefined; give longer texts.")
    return n_tokens
