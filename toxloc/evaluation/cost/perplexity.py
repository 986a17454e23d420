"""Perplexity and likelihood of texts."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...models.batching import batches, encode, pad
from ...models.likelihood import predicting, summed_nll, targets, token_nll
from ...models.loaded import LoadedModel

TOKENS_PER_WINDOWS = 4096  # read at a time


@torch.inference_mode()
def mean_nll(lm: LoadedModel, texts: Sequence[str], max_length: int = 256, describe: str = "perplexity") -> float:
    """Mean negative log-likelihood per predicted token, in nats, of the model as it is now.

    Each text is read alone from its first token, with padding masked.

    Raises:
        ToxlocError: no text has two tokens.
    """
    total, count = 0.0, 0
    for batch in batches(lm, texts, max_length=max_length, describe=describe):
        loss, n = summed_nll(lm, batch)
        total, count = total + loss.item(), count + n
    return total / some(count)


@torch.inference_mode()
def nll_per_text(lm: LoadedModel, texts: Sequence[str], max_length: int = 128
                 ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Summed negative log-likelihood of each text, in nats, and how many of its tokens are predicted."""
    nll, predicted = np.zeros(len(texts)), np.zeros(len(texts))
    for batch in batches(lm, texts, max_length=max_length, describe="NLL"):
        losses = token_nll(lm, predicting(lm, batch), targets(batch))
        counts = batch.mask[:, 1:].sum(1).cpu()
        nll[batch.index] = [one.double().sum().item() for one in losses.cpu().split(counts.tolist())]
        predicted[batch.index] = counts.numpy()
    return nll, predicted


@torch.inference_mode()
def strided_perplexity(lm: LoadedModel, texts: Sequence[str], *, window: int | None = None,
                       stride: int | None = None) -> float:
    """Perplexity of texts read on as one document, in windows that overlap.

    The texts are joined by blank lines and tokenised as one. A window has `window` tokens of it, with BOS before them
    if the model's texts begin so; the next one begins `stride` tokens later, and only tokens that no earlier window
    held are counted, each once. So every token but those of the first window is predicted from at least `window -
    stride` tokens before it. A token with nothing before it, not even BOS, is not counted.

    Args:
        lm: the model as it is now.
        texts: in the order of the document.
        window: tokens; by default the model's context (less the BOS), or 1,024 if that is shorter.
        stride: tokens; by default half of the window.

    Raises:
        ToxlocError: a window or stride that cannot be, or a document of one token.

    Example:
        >>> strided_perplexity(lm, wikitext, window=1024, stride=512)     # doctest: +SKIP
        29.3
    """
    first = int(lm.prepend_bos)
    room = lm.context - first
    window = min(1024, room) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= room:
        raise ToxlocError(f"window={window}: {lm.name} takes 2 to {room} tokens.")
    if not 1 <= stride <= window:
        raise ToxlocError(f"stride={stride}: give 1 to {window} tokens, the window.")
    row = lm.tokenizer("\n\n".join(texts), truncation=False, verbose=False, add_special_tokens=False)["input_ids"]
    starts = range(0, max(1, len(row) - window + stride), stride)
    rows = [[*[lm.tokenizer.bos_token_id] * first, *row[start : start + window]] for start in starts]
    fresh = [len(rows[0])] + [min(window, len(row) - start) - (window - stride) for start in starts[1:]]
    total, count, size = 0.0, 0, max(1, TOKENS_PER_WINDOWS // window)
    for at in range(0, len(rows), size):
        batch = pad(lm, rows[at : at + size], list(range(at, min(at + size, len(rows)))), "right")
        losses = token_nll(lm, predicting(lm, batch), targets(batch)).double()
        for losses_of_one, counted in zip(losses.split((batch.mask.sum(1) - 1).tolist()), fresh[at : at + size],
                                          strict=True):
            own = losses_of_one[max(0, len(losses_of_one) - counted) :]  # a window's first token has nothing before it
            total, count = total + own.sum().item(), count + len(own)
    return exp(total / some(count))


@torch.inference_mode()
def completion_perplexity(lm: LoadedModel, prompts: Sequence[str], completions: Sequence[Sequence[str]]) -> float:
    """Perplexity, under the model without its interventions, of completions after their prompts.

    Of each prompt's first completion that is not empty; nan if there is none.

    Example:
        >>> completion_perplexity(lm, ["The weather is"], [[" a bit cold."]])    # doctest: +SKIP
        21.7
    """
    said = [(prompt, text) for prompt, several in zip(prompts, completions, strict=True)
            if (text := next((one for one in several if one.strip()), None))]
    if not said:
        return math.nan
    with lm.unedited():
        nll, count = nll_of_endings(lm, [prompt for prompt, _ in said], [text for _, text in said])
    return exp(float(nll.sum() / max(1.0, count.sum())))


@torch.inference_mode()
def nll_of_endings(lm: LoadedModel, beginnings: Sequence[str], endings: Sequence[str], describe: str = "endings"
                   ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Summed negative log-likelihood in nats of each ending after its beginning, and its number of tokens.

    Both are tokenised together, and the ending's tokens are those after as many as the beginning has alone.

    Raises:
        ToxlocError: an ending does not fit into the context with its beginning.
    """
    whole = [beginning + ending for beginning, ending in zip(beginnings, endings, strict=True)]
    if any(len(row) == lm.context for row in encode(lm, whole, lm.context)):  # cut, or just about to be
        raise ToxlocError(f"A text and its ending fill the {lm.context} tokens that {lm.name} takes; leave such texts "
                          "out.")
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


def exp(value: float) -> float:
    """Exp that says inf where a float is too small to hold it (a destroyed model)."""
    return math.exp(value) if value < 700 else math.inf


def some(count: int) -> int:
    if count == 0:
        raise ToxlocError("No text has two tokens, so there is no perplexity; give longer texts.")
    return count
