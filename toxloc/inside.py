"""Looking inside: what neurons promote, and which tokens and texts drive them. Prints masked; fields hold raw words."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from .architectures import architecture, final_norm
from .batching import Batch, batches, encode, pad
from .errors import ToxlocError
from .likelihood import summed_nll
from .model import LoadedModel
from .statistics import ContrastStatistics

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


def mask(text: str) -> str:
    """Mask a token or text for display: every letter of a word but its first becomes '·', one for one.

    Digits, punctuation and whitespace stay; digits and apostrophes do not end a word.

    Example:
        >>> mask("Don't shout, you 1d10t!")
        "D··'· s····, y·· 1d10·!"
    """
    shown, inside = [], False
    for character in text:
        kind = unicodedata.category(character)[0]
        letter = kind in "LM"  # with combining marks, which would cut words of many scripts into single letters
        shown.append("·" if letter and inside else character)
        inside = letter or (inside and (kind == "N" or character in "'’_"))
    return "".join(shown)


@dataclass(frozen=True, eq=False, repr=False)
class Promoted:
    """The tokens that one neuron makes more (or less) likely.

    Attributes:
        layer, neuron: which one; its row of W_out writes to the residual stream.
        tokens: raw, strongest first.
        scores: logits per unit of activation, up to the scale of the final norm; negative if they are lowered.
    """

    layer: int
    neuron: int
    tokens: list[str]
    scores: Float64[np.ndarray, " k"]

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display."""
        return [mask(token) for token in self.tokens] if masked else list(self.tokens)

    def to_frame(self, masked: bool = True) -> "pd.DataFrame":
        """One row a token: layer, neuron, token, score."""
        import pandas as pd

        return pd.DataFrame({"layer": self.layer, "neuron": self.neuron, "token": self.shown(masked),
                             "score": self.scores})

    def __repr__(self) -> str:
        return f"Promoted(layer {self.layer}, neuron {self.neuron}: {', '.join(map(repr, self.shown()))})"


def promoted_tokens(lm: LoadedModel, neurons: Sequence[tuple[int, int]], k: int = 10, *, sign: int = 1
                    ) -> list[Promoted]:
    """Find the tokens whose logits a neuron raises most when it writes its row of W_out to the residual stream.

    The row goes straight to the unembedding, through the final norm linearised as the logit lens does for directions:
    centred if it is a LayerNorm, times the gain, divided by nothing. What a norm divides by, the size of the residual
    stream, is one for all tokens and does not change their order. A norm right after the MLP (gemma2, gemma3, olmo2)
    is linearised in the same way. Left out are the row's own effect on that size (so scores are exact for a stream
    orthogonal to it), later blocks, and a soft cap of the logits. Source: Geva et al. 2022, arXiv:2203.14680.

    Args:
        lm: the model.
        neurons: (layer, neuron) pairs.
        k: tokens a neuron.
        sign: 1 for the tokens it raises most, -1 for those it lowers most.

    Raises:
        ToxlocError: no such layer or neuron, k out of range, another sign, a model without a final norm.

    Example:
        >>> from toxloc import load_model
        >>> promoted_tokens(load_model(), [(3, 17)], k=4)[0].scores.shape
        (4,)
    """
    if sign not in (1, -1):
        raise ToxlocError(f"sign={sign}: give 1 for the tokens a neuron promotes, -1 for those it suppresses.")
    # Vocabularies are often padded beyond the tokens that there are. Split, lest all turn from 16 bits to 32 at once.
    unembedding = lm.hf.get_output_embeddings().weight.detach()[: len(lm.tokenizer)]
    if not 1 <= k <= len(unembedding):
        raise ToxlocError(f"k={k}: {lm.name} has 1 to {len(unembedding)} tokens to choose from.")
    found = []
    for layer, neuron in neurons:
        direction = _direction(lm, layer, neuron)
        top = (sign * torch.cat([rows.float() @ direction for rows in unembedding.split(16384)])).topk(k)
        scores = sign * top.values.double().cpu().numpy()
        found.append(Promoted(layer, neuron, [_decode(lm, t) for t in top.indices.tolist()], scores))
    return found


def _direction(lm: LoadedModel, layer: int, neuron: int) -> Float[Tensor, " d_model"]:
    """Return what the unembedding reads of a neuron's row of W_out, norms linearised."""
    _check_neuron(lm, layer, neuron)
    family = architecture(lm.model_type)
    row = lm.W_out(layer)[neuron].detach().float()
    for norm in ([lm.contribution(layer)] if family.post_norm else []) + [final_norm(lm.hf)]:
        if isinstance(norm, nn.LayerNorm):
            row = row - row.mean()
        if isinstance(norm.weight, Tensor):  # a LayerNorm may have none
            row = row * (family.norm_offset + norm.weight.detach().float())
    return row


@dataclass(frozen=True, eq=False, repr=False)
class TokenView:
    """What every layer does at every token of one text.

    Attributes:
        text: raw.
        tokens: raw, decoded one by one; the BOS token first where the model's texts begin with it.
        attribution: nats of log-likelihood the text would lose, to first order, if the layer's neurons were silenced
            at that position: what they contribute there to saying this text.
        activation: how far the layer's output lies towards the toxic side of the middle between the means of toxic
            and neutral tokens, in standard deviations; None without statistics.
    """

    text: str
    tokens: list[str]
    attribution: Float64[np.ndarray, "n_layers pos"]
    activation: Float64[np.ndarray, "n_layers pos"] | None

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display. A word is masked as a whole, also where several tokens make it up."""
        characters = iter(mask("".join(self.tokens)) if masked else "".join(self.tokens))
        return ["".join(next(characters) for _ in token) for token in self.tokens]

    def heatmap(self, kind: str = "attribution", masked: bool = True) -> "Figure":
        """Plotly heatmap of layer against token, of "attribution" or "activation"."""
        from .plots import token_heatmap

        return token_heatmap(self, kind, masked)

    def __repr__(self) -> str:
        return f"TokenView({mask(self.text)!r}, {len(self.tokens)} tokens, {len(self.attribution)} layers)"


def token_view(lm: LoadedModel, text: str, statistics: ContrastStatistics | None = None, *, max_length: int = 128
               ) -> TokenView:
    """Show at which tokens of a text each layer drives it, and where its output looks toxic.

    With m_t a layer's output at position t and NLL the text's summed negative log-likelihood, attribution is
    -<m_t - b_out, dNLL/dm_t>; activation is <(m_t - (mean_T + mean_N) / 2) / sd_pooled, d> with d the unit vector
    along (mean_T - mean_N) / sd_pooled. The first position is shown too, though it may be an attention sink that
    dwarfs all others. A norm right after the MLP undoes whatever scales all neurons of a layer alike, so in gemma2,
    gemma3 and olmo2 attribution is that of the norm's output, as in the score of that name.

    Args:
        lm: the model.
        text: of two tokens at least.
        statistics: of a contrast set, from `collect_contrast` on this model; without it there is no activation.
        max_length: tokens read.

    Raises:
        ToxlocError: the text is empty or a single token, or the statistics are of a model of another shape.

    Example:
        >>> from toxloc import load_model
        >>> token_view(load_model(), "The sun is out.").attribution.shape
        (8, 6)
    """
    batch = pad(lm, encode(lm, [text], max_length), [0], "right")
    if batch.ids.shape[1] < 2:
        raise ToxlocError("A text of one token has nothing to predict; give a longer text or a larger max_length.")
    outputs, own, gradients = _outputs_and_gradients(lm, batch)
    attribution = -(own * gradients).sum(2).numpy()
    activation = None if statistics is None else _toxic_side(lm, outputs, statistics)
    return TokenView(text, [_decode(lm, t) for t in batch.ids[0].tolist()], attribution, activation)


def _outputs_and_gradients(lm: LoadedModel, batch: Batch) -> tuple[Float64[Tensor, "n_layers pos d_model"], ...]:
    """Return every layer's m, what its neurons alone put into the stream, and dNLL by that, for a batch of one text."""
    outputs: list[Tensor] = []
    written: list[Tensor] = []
    normed = lm.contribution(0) is not lm.down_projection(0)  # a norm follows the MLP

    def keep(m: Tensor, hook: Any) -> Tensor:
        # With frozen weights the graph begins here, at the first layer's output. Hooks run in the order of layers.
        outputs.append(m if m.requires_grad else m.detach().requires_grad_(True))
        return outputs[-1]

    hooks: list[tuple[str, Any]] = [(lm.output_hook(i), keep) for i in range(lm.n_layers)]
    if normed:
        hooks += [(lm.contribution_hook(i), lambda c, hook: written.append(c)) for i in range(lm.n_layers)]
    with torch.enable_grad(), lm.hooked.hooks(fwd_hooks=hooks):
        loss, _ = summed_nll(lm, batch)
        gradients = torch.autograd.grad(loss, written if normed else outputs)
    biases = [None if normed else lm.b_out(layer) for layer in range(lm.n_layers)]
    own = [c if bias is None else c - bias for c, bias in zip(written or outputs, biases, strict=True)]
    return tuple(torch.stack([t.detach().cpu().double().view(batch.ids.shape[1], -1) for t in tensors])
                 for tensors in (outputs, own, gradients))


def _toxic_side(lm: LoadedModel, outputs: Float64[Tensor, "n_layers pos d_model"], s: ContrastStatistics
                ) -> Float64[np.ndarray, "n_layers pos"]:
    """Project every layer's standardised outputs on the layer's toxic direction."""
    toxic, neutral = s.toxic.contributions, s.neutral.contributions
    assert toxic is not None and neutral is not None

    def total(groups: Sequence[Tensor]) -> Tensor:
        return torch.stack([x.sum(0) for x in groups]).cpu().double()

    n_T, n_N = total([toxic.tokens]).clamp_min(1), total([neutral.tokens]).clamp_min(1)
    mean_T, mean_N = total(toxic.outputs) / n_T, total(neutral.outputs) / n_N
    if mean_T.shape != (lm.n_layers, lm.d_model):
        raise ToxlocError(f"These statistics are of a model of another shape; gather them on {lm.name}.")
    var = (total(toxic.squares) + total(neutral.squares) - n_T * mean_T**2 - n_N * mean_N**2) / (n_T + n_N)
    per_sd = torch.where(var > 0, var.rsqrt(), 0.0)  # an element that never varies says nothing
    d = nn.functional.normalize((mean_T - mean_N) * per_sd, dim=1)
    return ((outputs - ((mean_T + mean_N) / 2)[:, None]) * (per_sd * d)[:, None]).sum(2).numpy()


@dataclass(frozen=True, repr=False)
class Driven:
    """A text that drives a neuron.

    Attributes:
        text: raw.
        index: its place among the texts given.
        activation: the neuron's largest in it (hook_post).
        token, position: where that is; the token raw, the position counted from the BOS token where there is one.
    """

    text: str
    index: int
    activation: float
    token: str
    position: int

    def shown(self, masked: bool = True) -> str:
        """Return the text for display."""
        return mask(self.text) if masked else self.text

    def __repr__(self) -> str:
        return f"Driven({self.activation:.3g} at {mask(self.token)!r} in text {self.index}: {self.shown()!r})"


def driving_texts(lm: LoadedModel, texts: Sequence[str], layer: int, neuron: int, k: int = 5, *,
                  skip_first: bool = True, max_length: int = 128) -> list[Driven]:
    """Find the k texts in which a neuron's activation peaks highest, highest first. One streaming pass.

    Args:
        lm: the model.
        texts: at least one, none empty.
        layer: where the neuron is.
        neuron: which one; its activation is taken at hook_post.
        k: texts to return; fewer come back if fewer have a token to see.
        skip_first: leave the first position out, which can be an attention sink.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: no texts, an empty text, no such layer or neuron, k below 1.

    Example:
        >>> from toxloc import load_model
        >>> len(driving_texts(load_model(), ["The sun is out.", "Good morning."], layer=3, neuron=17, k=1))
        1
    """
    _check_neuron(lm, layer, neuron)
    if not texts or k < 1:
        raise ToxlocError(f"Asked for {k} of {len(texts)} texts; ask for one or more, and give some to choose from.")
    best: list[tuple[float, int, int, int]] = []  # activation, index, position, token id
    seen: list[Tensor] = []
    with torch.inference_mode(), lm.hooked.hooks(fwd_hooks=[(lm.neuron_hook(layer), lambda a, hook: seen.append(a))]):
        for batch in batches(lm, texts, max_length=max_length, describe="looking for texts"):
            lm.forward_hidden(batch.ids, batch.mask)
            kept = batch.real.clone()
            kept[:, 0] &= not skip_first
            a = seen.pop().view(*kept.shape, -1)[..., neuron].float()
            peak, position = a.masked_fill(~kept, -torch.inf).max(1)
            token = batch.ids.gather(1, position[:, None])[:, 0]
            rows = zip(peak.tolist(), batch.index, position.tolist(), token.tolist(), strict=True)
            best = sorted([*best, *(row for row in rows if row[0] > -torch.inf)], key=lambda row: -row[0])[:k]
    return [Driven(texts[i], i, activation, _decode(lm, token), position) for activation, i, position, token in best]


def _check_neuron(lm: LoadedModel, layer: int, neuron: int) -> None:
    if not (0 <= layer < lm.n_layers and 0 <= neuron < lm.d_mlp):
        raise ToxlocError(f"No {(layer, neuron)}; {lm.name} has {lm.n_layers} layers of {lm.d_mlp} neurons, from 0.")


def _decode(lm: LoadedModel, token: int) -> str:
    """Decode one token, with the space before a word that SentencePiece decoders strip where a text begins."""
    piece: str = lm.tokenizer.decode([token])
    spaced = (lm.tokenizer.convert_ids_to_tokens(token) or "").startswith("▁")
    return " " + piece if spaced and piece[:1] != " " else piece
