"""Negative log-likelihood of each token of a text, without the logits of a whole batch in memory.

The unembedding is the widest matrix of most models. Logits are computed, reduced and discarded some rows at a time, and
only at positions that predict a real token. The gradient with respect to the hidden states is computed from the same
rows.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .batching import Batch
from .loaded import LoadedModel

LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}  # float32 numbers; on a CPU, 16 MB are faster than 4 MB and 32 MB
FEWEST_ROWS = 256  # a matrix product with fewer rows is slow


def summed_nll(lm: LoadedModel, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Return the negative log-likelihood in nats, summed over the tokens after each text's first, and their number.

    Each text of the batch is read independently, from its first token; the batch must be right-padded. Padding and the
    tokens of a chat template are not counted. The sum is differentiable with respect to tensors that hooks on
    `lm.hooked` put into the graph.

    Example:
        >>> from toxloc import load_model
        >>> from toxloc.models.batching import batches
        >>> lm = load_model()
        >>> summed_nll(lm, next(batches(lm, ["The sun is out."])))[1]
        5
    """
    losses = token_nll(lm, predicting(lm, batch), targets(batch))
    return losses.sum(), len(losses)


def predicted(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Return a mask that is True at the positions that predict a token: where the next token counts."""
    return torch.nn.functional.pad(batch.own[:, 1:], (0, 1)).bool()


def targets(batch: Batch) -> Int[Tensor, " n"]:
    """Return the predicted tokens, text by text."""
    return batch.ids[:, 1:][batch.counted[:, 1:]]


def predicting(lm: LoadedModel, batch: Batch) -> Float[Tensor, "n d_model"]:
    """Return the final hidden states (after the last norm) from which `targets` are predicted, text by text."""
    return lm.forward_hidden(batch.ids, batch.mask)[predicted(batch)]


def sampled(lm: LoadedModel, hidden: Float[Tensor, "n d_model"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Sample the next token after each hidden state from the distribution that the model predicts."""
    with torch.no_grad():
        drawn = [
            torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0]
            for _, logits in logit_rows(lm, hidden.detach())
        ]
    return torch.cat(drawn).to(hidden.device)


def token_nll(lm: LoadedModel, hidden: Float[Tensor, "n d_model"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the negative log-likelihood of a token after each hidden state, in nats, as float32.

    It is differentiable with respect to `hidden`.
    """
    losses: Tensor = _TokenNLL.apply(hidden, token, lm)  # type: ignore[no-untyped-call]
    return losses


@torch.no_grad()
def log_probabilities(
    lm: LoadedModel, hidden: Float[Tensor, "n d_model"], tokens: Int[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """Return the log-probability of k tokens after each hidden state, in nats, as float32.

    Example:
        >>> from toxloc import load_model
        >>> lm = load_model()
        >>> tokens = torch.arange(lm.d_vocab)[None]
        >>> round(log_probabilities(lm, torch.zeros(1, lm.d_model), tokens).exp().sum().item(), 3)
        1.0
    """
    return torch.cat(
        [
            logits.gather(1, tokens[rows]) - logits.logsumexp(1, keepdim=True)
            for rows, logits in logit_rows(lm, hidden.detach())
        ]
    )


def logit_rows(
    lm: LoadedModel, hidden: Float[Tensor, "n d_model"]
) -> Iterator[tuple[slice, Float[Tensor, "rows d_vocab"]]]:
    """Yield the logits of a few rows of hidden states at a time, in float32, and the slice of these rows."""
    (W_U, b_U), cap, scale = lm.unembedding, lm.soft_cap, lm.logit_scale
    at_once = LOGITS_AT_ONCE["cpu" if hidden.device.type == "cpu" else "cuda"]
    step = max(FEWEST_ROWS, at_once // len(W_U))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = torch.nn.functional.linear(hidden[rows].to(W_U.device), W_U, b_U).float().to(hidden.device)
        logits = logits if scale == 1 else logits.mul_(scale)
        yield rows, logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


class _TokenNLL(torch.autograd.Function):
    """Loss and gradient with respect to `hidden` in one pass over the rows: d loss / d logits = softmax - one-hot."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, token: Tensor, lm: LoadedModel) -> Tensor:
        losses = torch.empty(len(hidden), device=hidden.device)
        needs_gradient = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        cap, (W_U, _), scale = lm.soft_cap, lm.unembedding, lm.logit_scale
        for rows, logits in logit_rows(lm, hidden):
            target = token[rows, None]
            target_logit = logits.gather(1, target)[:, 0]
            cap_slope = None if cap is None or not needs_gradient else 1 - (logits / cap) ** 2
            largest = logits.amax(1, keepdim=True)
            sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
            losses[rows] = (largest + sums.log())[:, 0] - target_logit
            if gradient is not None:
                slope = logits.div_(sums)
                slope.scatter_add_(1, target, torch.full_like(target_logit, -1.0)[:, None])
                slope = slope if cap_slope is None else slope * cap_slope
                gradient[rows] = (slope if scale == 1 else slope * scale).to(W_U) @ W_U
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        return losses

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * gradients[0][:, None].to(gradient.dtype), None, None
