"""What an intervention costs: perplexity on everyday text, and how far the next-token distribution moved."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .batching import batches, encode, pad
from .errors import ToxlocError
from .likelihood import logit_rows, predicting, summed_nll, targets, token_nll
from .model import LoadedModel

TOKENS_PER_WINDOWS = 4096  # read at a time


@dataclass(frozen=True)
class Fluency:
    """Language quality on one set of texts.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        perplexity_ratio: that over the unedited model's; 1 if nothing is applied.
        kl: mean over tokens of KL(unedited || edited) of the next-token distribution, in nats.
        top_1: share of tokens at which the most likely next token is still the unedited model's.
        n_tokens: predicted tokens.
    """

    perplexity: float
    perplexity_ratio: float
    kl: float
    top_1: float
    n_tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name."""
        return asdict(self)


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
    return total / _some(count)


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
def measure_fluency(lm: LoadedModel, texts: Sequence[str], *, max_length: int = 256) -> Fluency:
    """Compare the model as it is now with the same model without its interventions, batch by batch.

    Raises:
        ToxlocError: no text has two tokens.

    Example:
        >>> from toxloc import load_model
        >>> measure_fluency(load_model(), ["The cat sat on the mat."]).perplexity_ratio
        1.0
    """
    edited = unedited = divergence = same = 0.0
    count = 0
    for batch in batches(lm, texts, max_length=max_length, describe="perplexity and KL"):
        now, token = predicting(lm, batch), targets(batch)
        count += len(token)
        if not lm.applied:
            edited += token_nll(lm, now, token).sum().item()
            continue
        with lm.unedited():
            before = predicting(lm, batch)
        sums = _compare(lm, before, now, token)
        unedited, edited = unedited + sums[0], edited + sums[1]
        divergence, same = divergence + sums[2], same + sums[3]
    count = _some(count)
    if not lm.applied:
        unedited, same = edited, count
    return Fluency(_exp(edited / count), _exp((edited - unedited) / count), divergence / count, same / count, count)


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
    return _exp(total / _some(count))


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
    return _exp(float(nll.sum() / max(1.0, count.sum())))


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


class Unedited:
    """What the model as it is now says of some texts, kept, so that each edit is compared with it in one pass.

    Kept are the final hidden states, [n_tokens, d_model], on the model's device.

    Args:
        lm: the model.
        texts: what to compare on.
        kl: measure KL and top-1 too; without it nothing but the perplexity is kept, and `compare` gives nan for them.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: no text has two tokens.

    Example:
        >>> unedited = Unedited(lm, neutral.tune)                          # doctest: +SKIP
        >>> with edit.applied(lm): unedited.compare().perplexity_ratio     # doctest: +SKIP
    """

    @torch.inference_mode()
    def __init__(self, lm: LoadedModel, texts: Sequence[str], *, kl: bool = True, max_length: int = 256):
        self.lm, self.kl = lm, kl
        self._batches = list(batches(lm, texts, max_length=max_length, describe="perplexity"))
        self._hidden = []
        self._nll, self._count = 0.0, 0
        for batch in self._batches:
            hidden, token = predicting(lm, batch), targets(batch)
            self._nll += token_nll(lm, hidden, token).sum().item()
            self._count += len(token)
            if kl:
                self._hidden.append(hidden)
        _some(self._count)

    @torch.inference_mode()
    def compare(self) -> Fluency:
        """Compare the model as it is now."""
        edited, divergence, same = 0.0, *((0.0, 0.0) if self.kl else (math.nan, math.nan))
        for i, batch in enumerate(self._batches):
            now, token = predicting(self.lm, batch), targets(batch)
            if self.kl:
                _, nll, kl, top_1 = _compare(self.lm, self._hidden[i], now, token)
                edited, divergence, same = edited + nll, divergence + kl, same + top_1
            else:
                edited += token_nll(self.lm, now, token).sum().item()
        n = self._count
        return Fluency(_exp(edited / n), _exp((edited - self._nll) / n), divergence / n, same / n, n)


def _compare(lm: LoadedModel, before: Float[Tensor, "n d_model"], now: Float[Tensor, "n d_model"],
             token: Int[Tensor, " n"]) -> tuple[float, float, float, int]:
    """Return the summed NLL before and now, the summed KL(before || now), and where the most likely token is the same.

    No intervention edits the unembedding, so both are read through it as it is.
    """
    nll_before = nll_now = divergence = 0.0
    same = 0
    for (rows, q), (_, p) in zip(logit_rows(lm, now), logit_rows(lm, before), strict=True):
        p, q, own = p.log_softmax(-1), q.log_softmax(-1), token[rows, None]
        nll_before -= p.gather(1, own).sum().item()
        nll_now -= q.gather(1, own).sum().item()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        divergence += (p.exp() * (p - q)).sum().item()
    return nll_before, nll_now, divergence, same


def _exp(value: float) -> float:
    """Exp that says inf where a float is too small to hold it (a destroyed model)."""
    return math.exp(value) if value < 700 else math.inf


def _some(count: int) -> int:
    if count == 0:
        raise ToxlocError("No text has two tokens, so there is no perplexity; give longer texts.")
    return count
