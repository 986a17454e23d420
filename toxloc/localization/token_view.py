"""Token view: attribution and activation of every layer at every token of one text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ..errors import ToxlocError
from ..models.batching import Batch, decode_token, encode, pad
from ..models.likelihood import summed_nll
from ..models.loaded import LoadedModel
from ..models.site_view import Hook
from ..models.sites import BySite, Site
from ..support.masking import mask, mask_tokens
from .statistics import ContrastStatistics

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TokenView:
    """Attribution and activation of every layer at every token of one text.

    Attributes:
        text: the text, unmasked.
        tokens: the tokens, unmasked and decoded one by one; the BOS token is first if the model's texts begin with it.
        attribution: contribution of the layer's neurons at a position to the log-likelihood of the text, in nats: the
            loss of log-likelihood, to first order, if they were silenced at that position.
        activation: distance of the layer's output from the midpoint between the means of toxic and neutral tokens,
            towards the toxic mean, in standard deviations; None without statistics.
        layers: number of the layer of each row.
    """

    text: str
    tokens: list[str]
    attribution: Float64[np.ndarray, "n_layers pos"]
    activation: Float64[np.ndarray, "n_layers pos"] | None
    layers: Sequence[int] = ()

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display. A word is masked as a whole, even if it consists of several tokens."""
        return mask_tokens(self.tokens) if masked else list(self.tokens)

    def heatmap(self, kind: str = "attribution", masked: bool = True) -> "Figure":
        """Return a Plotly heatmap of layer against token, of "attribution" or "activation"."""
        from ..plots.tokens import token_heatmap

        return token_heatmap(self, kind, masked)

    def __repr__(self) -> str:
        return f"TokenView({mask(self.text)!r}, {len(self.tokens)} tokens, {len(self.attribution)} layers)"


def token_view(
    lm: LoadedModel, text: str, statistics: ContrastStatistics | None = None, *, max_length: int = 128
) -> TokenView:
    """Show at which tokens of a text each layer contributes to the text, and where its output looks toxic.

    With m_t a layer's output at position t and NLL the text's summed negative log-likelihood, attribution is
    -<m_t - b_out, dNLL/dm_t>; activation is <(m_t - (mean_T + mean_N) / 2) / sd_pooled, d> with d the unit vector
    along (mean_T - mean_N) / sd_pooled. The first position is included, although it may be an attention sink with much
    larger values than all others. A norm right after the MLP undoes a common scaling of all neurons of a layer, so in
    gemma2, gemma3 and olmo2 attribution is computed from the norm's output, as in the score `attribution`.

    Args:
        lm: the model.
        text: text of at least two tokens.
        statistics: statistics of a contrast set, from `collect_contrast` on this model; without them, the result has no
            activation.
        max_length: number of tokens read from the text.

    Raises:
        ToxlocError: the text is empty or a single token, or the statistics are of a model of another shape.

    Example:
        >>> from toxloc import load_model
        >>> token_view(load_model(), "The sun is out.").attribution.shape
        (8, 6)
    """
    batch = pad(lm, encode(lm, [text], max_length), [0], "right")
    if batch.ids.shape[1] < 2:
        raise ToxlocError("A text of one token has no token to predict; give a longer text or a larger max_length.")
    outputs, written, gradients = _outputs_and_gradients(lm, batch)
    attribution = -(written * gradients).sum(2).numpy()
    activation = None if statistics is None else _toxic_side(lm, outputs, statistics)
    layers = [site.layer for site in mlps(lm)]
    return TokenView(text, [decode_token(lm, t) for t in batch.ids[0].tolist()], attribution, activation, layers)


def mlps(lm: LoadedModel) -> list[Site]:
    """Return the MLPs of a model.

    Raises:
        ToxlocError: it has none.
    """
    if not (sites := lm.sites("mlp")):
        raise ToxlocError(f"{lm.name} has no MLP, whose outputs token_view shows; its parts are {', '.join(lm.parts)}.")
    return sites


def _outputs_and_gradients(lm: LoadedModel, batch: Batch) -> tuple[Float64[Tensor, "n_layers pos d_model"], ...]:
    """Return every layer's m, the output of its neurons to the residual stream, and the gradient at that output.

    The batch holds one text.
    """
    outputs: list[Tensor] = []
    normed_outputs: list[Tensor] = []
    views = [lm.at(site) for site in mlps(lm)]

    def keep(m: Tensor) -> Tensor:
        # With frozen weights the graph begins here, at the first layer's output. Hooks run in the order of layers.
        outputs.append(m if m.requires_grad else m.detach().requires_grad_(True))
        return outputs[-1]

    hooks: list[tuple[Hook, Callable[[Tensor], Tensor | None]]] = [(view.output_hook, keep) for view in views]
    hooks += [(view.write_hook, normed_outputs.append) for view in views if view.has_norm]
    with torch.enable_grad(), lm.hooks(hooks):
        loss, _ = summed_nll(lm, batch)
        normed = iter(normed_outputs)
        ends = [next(normed) if view.has_norm else m for view, m in zip(views, outputs, strict=True)]
        gradients = torch.autograd.grad(loss, ends)
    biases = [None if view.has_norm else view.bias for view in views]
    written = [c if bias is None else c - bias for c, bias in zip(ends, biases, strict=True)]
    return tuple(
        torch.stack([t.detach().cpu().double().view(batch.ids.shape[1], -1) for t in tensors])
        for tensors in (outputs, written, gradients)
    )


def _toxic_side(
    lm: LoadedModel, outputs: Float64[Tensor, "n_layers pos d_model"], s: ContrastStatistics
) -> Float64[np.ndarray, "n_layers pos"]:
    """Project every layer's standardised outputs onto the layer's toxic direction."""
    toxic, neutral = s.toxic.contributions, s.neutral.contributions
    assert toxic is not None and neutral is not None

    def total(groups: BySite[Tensor]) -> Tensor:
        """Sum over groups: [n_layers, d_model]."""
        return torch.stack([x.sum(0) for site, x in groups.items() if site.part == "mlp"]).cpu().double()

    n_T, n_N = (side.tokens.sum().cpu().double().clamp_min(1) for side in (toxic, neutral))
    mean_T, mean_N = total(toxic.outputs) / n_T, total(neutral.outputs) / n_N
    if mean_T.shape != (len(outputs), lm.d_model):
        raise ToxlocError(f"These statistics are from a model of another shape; gather them on {lm.name}.")
    var = (total(toxic.squares) + total(neutral.squares) - n_T * mean_T**2 - n_N * mean_N**2) / (n_T + n_N)
    per_sd = torch.where(var > 0, var.rsqrt(), 0.0)  # an element that never varies does not count
    d = nn.functional.normalize((mean_T - mean_N) * per_sd, dim=1)
    return ((outputs - ((mean_T + mean_N) / 2)[:, None]) * (per_sd * d)[:, None]).sum(2).numpy()
