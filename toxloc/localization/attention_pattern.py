"""Attention pattern: to which earlier tokens of one text a head attends from each of its tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from ..errors import ToxlocError
from ..models.attention import Attended, watched_attention
from ..models.batching import decode_token, encode, pad
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import AnySite, Site, Unit, unit_of
from ..support.masking import mask, mask_tokens

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WeighedBy = Literal["attention", "norm"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPattern:
    """How much a head reads from each token of one text at each of its tokens.

    Attributes:
        site, head: the head.
        by: "attention" if the weights are those of the softmax; "norm" if they are multiplied by the length of what the
            head writes for a source.
        text: the text, unmasked.
        tokens: the tokens, unmasked and decoded one by one; the BOS token is first if the model's texts begin with it.
        weights: weight of each source (column) at each query (row), float64 [pos, pos]; 0 for sources after the query.
    """

    site: Site
    head: int
    by: str
    text: str
    tokens: list[str]
    weights: Float64[np.ndarray, "pos pos"]

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display. A word is masked as a whole, even if it consists of several tokens."""
        return mask_tokens(self.tokens) if masked else list(self.tokens)

    def heatmap(self, masked: bool = True) -> "Figure":
        """Return a Plotly heatmap of query against source."""
        from ..plots.heads import attention_heatmap

        return attention_heatmap(self, masked)

    def __repr__(self) -> str:
        return f"AttentionPattern({self.site.title}, head {self.head}: {mask(self.text)!r}, {len(self.tokens)} tokens)"


def attention_pattern(
    lm: AnyModel, head: tuple[AnySite, int], text: str, *, by: WeighedBy = "attention", max_length: int = 128
) -> AttentionPattern:
    """Show to which tokens of a text a head attends.

    Args:
        lm: the model, with the interventions that are applied to it.
        head: the head, as (Site(3, "attention"), 2).
        text: the text.
        by: "attention" for the weights A of the softmax; "norm" for A ||v W_O||, the length of what the head writes for
            a source, with v the value of the source and W_O the rows of the head (Kobayashi et al. 2020,
            arXiv:2004.10102). The first token of a text often has a large A, because a head that has nothing to write
            must attend somewhere, but a short v.
        max_length: number of tokens read from the text.

    Raises:
        ToxlocError: the unit is not a head of the model; `by` is unknown; the attention does not compute a pattern per
            head; or, for by="norm", its values cannot be read.

    Example:
        >>> from toxloc import Site, load_model
        >>> pattern = attention_pattern(load_model(), (Site(3, "attention"), 2), "The sun is out.")
        >>> pattern.weights.shape, pattern.weights.sum(1).round(3).tolist()
        ((6, 6), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    lm = LoadedModel.of(lm)
    site, number = head_of(lm, head)
    check_by(by)
    batch = pad(lm, encode(lm, [text], max_length), [0], "right")
    patterns: list[Tensor] = []

    def read(site: Site, attended: Attended) -> None:
        patterns.append(weights_of_head(lm, site, number, attended, by)[0].double().cpu())

    with watched_attention(lm, [site], read) as forward:
        forward(batch)
    tokens = [decode_token(lm, token) for token in batch.ids[0].tolist()]
    return AttentionPattern(site, number, by, text, tokens, patterns[0].numpy())


def weights_of_head(
    lm: LoadedModel, site: Site, head: int, attended: Attended, by: WeighedBy
) -> Float[Tensor, "batch query source"]:
    """Return the attention weights A of a head or, by="norm", A ||v W_O||.

    Raises:
        ToxlocError: by="norm", and the values of the attention cannot be read.
    """
    weights = attended.weights[:, head].float()
    if by == "attention":
        return weights
    if attended.values is None:
        raise ToxlocError(
            f"The values that the heads of {site.title} of {lm.name} ({lm.model_type}) read cannot be measured: the "
            "class of the model does not show them, or it gates or norms the outputs of its heads; give by='attention'."
        )
    view, values = lm.at(site), attended.values_of(head).float()
    written: Tensor = (values @ view.W[view.rows(head)].float().to(values.device)).norm(dim=-1)
    return weights * written[:, None]


def head_of(lm: LoadedModel, head: tuple[AnySite, int]) -> Unit:
    """Return a head of a model as a unit.

    Raises:
        ToxlocError: it is not a head of an attention of the model.
    """
    site, number = unit_of(head)
    if site.part != "attention":
        raise ToxlocError(
            f"{site.title} has no attention heads; give a head as (Site({site.layer}, 'attention'), {number})."
        )
    lm.check_unit(site, number)
    return site, number


def check_by(by: str) -> None:
    """Check the name of a kind of weight.

    Raises:
        ToxlocError: it is unknown.
    """
    if by not in get_args(WeighedBy):
        raise ToxlocError(f"by={by!r}: choose one of {', '.join(get_args(WeighedBy))}.")
