"""Head view: to which tokens of some texts attention heads attend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..errors import ToxlocError
from ..models.attention import Attended, watched_attention
from ..models.batching import Batch, batches, decode_token, encode
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import AnySite, Site, Unit
from ..support.arguments import as_list, whole_number
from ..support.masking import mask
from ..texts.drawing import check_texts
from .attention_pattern import WeighedBy, check_by, head_of, weights_of_head

if TYPE_CHECKING:
    import pandas as pd

TINY = torch.finfo(torch.float64).tiny
ROLES = ("first", "previous", "self", "other")


@dataclass(frozen=True, repr=False)
class Source:
    """A token that a head attends to: one position of a text, or all positions with this token.

    Attributes:
        token: the token, unmasked.
        share: share of the head's weight that the source receives.
        uniform: the share that it would receive if every position attended equally to all positions up to itself.
        position: its position in the text, counted from the BOS token if there is one; None for all positions.
        n_texts: number of texts with this token.
    """

    token: str
    share: float
    uniform: float
    position: int | None = None
    n_texts: int = 1

    def __repr__(self) -> str:
        return f"Source({mask(self.token)!r}, {self.share:.1%}, {self.uniform:.1%} if uniform)"


@dataclass(frozen=True, eq=False, repr=False)
class HeadView:
    """To which tokens of some texts a head attends.

    Attributes:
        site, head: the head.
        by: "attention" or "norm"; see `head_view`.
        n_texts: number of texts with at least two tokens; the other texts are left out.
        roles: share of the weight on the first token of the text, the previous token, the position itself and all
            others; the shares sum to 1.
        entropy: mean entropy of the weights of a position, in nats; 0 if every position attends to a single one.
        tokens: the tokens with the largest share, averaged over all texts, largest first.
        texts: of each text, by its index, the positions with the largest share, largest first.
    """

    site: Site
    head: int
    by: str
    n_texts: int
    roles: dict[str, float]
    entropy: float
    tokens: list[Source]
    texts: dict[int, list[Source]]

    @property
    def layer(self) -> int:
        """Layer of the head."""
        return self.site.layer

    def shown(self, masked: bool = True) -> list[str]:
        """Return the tokens for display, masked by default."""
        return [mask(source.token) if masked else source.token for source in self.tokens]

    def to_frame(self, masked: bool = True) -> "pd.DataFrame":
        """Return a table with one row per token: layer, head, token, share, uniform, n_texts."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": self.layer,
                "head": self.head,
                "token": self.shown(masked),
                **{name: [getattr(source, name) for source in self.tokens] for name in ("share", "uniform", "n_texts")},
            }
        )

    def __repr__(self) -> str:
        roles = ", ".join(f"{role} {share:.0%}" for role, share in self.roles.items())
        return f"HeadView({self.site.title}, head {self.head}: {roles}; {', '.join(map(repr, self.shown()))})"


def head_view(
    lm: AnyModel,
    heads: Iterable[tuple[AnySite, int]],
    texts: Sequence[str],
    *,
    by: WeighedBy = "attention",
    k: int = 10,
    skip_first: bool = True,
    max_length: int = 128,
) -> list[HeadView]:
    """Find to which tokens of some texts attention heads attend, in one streaming pass.

    With w_ij the weight of source j at position i of a text, the share of a source is sum_i w_ij / sum_ij w_ij: of all
    that the head reads in the text, the part that it reads from j. The first position can attend to nothing but itself
    and is left out of i. Shares and entropies are averaged over texts, so every text counts the same. An early position
    is read from more positions than a late one; `Source.uniform` is what it would receive by that alone.

    Attention weights say what a head reads, not whether it matters: the value of a source can be short, and later
    layers can ignore what the head writes. `patch` measures the effect of a head.

    Args:
        lm: the model, with the interventions that are applied to it.
        heads: the heads, as [(Site(3, "attention"), 2)], which `Localization.top_heads` returns.
        texts: at least one text, none empty.
        by: "attention" for the weights A of the softmax; "norm" for A ||v W_O||, the length of what the head writes for
            a source (Kobayashi et al. 2020, arXiv:2004.10102): a sink has a large A but a short v.
        k: number of tokens, and of positions of each text; fewer are returned if there are fewer.
        skip_first: leave the first position, which can be an attention sink, out of `tokens` and `texts`; its share is
            `roles["first"]`.
        max_length: number of tokens read from each text.

    Returns:
        One view per head, in the order of `heads`.

    Raises:
        ToxlocError: a unit is not a head of the model; `by` is unknown; no text has two tokens; k is below 1; an
            attention does not compute a pattern per head; or, for by="norm", its values cannot be read.

    Example:
        >>> from toxloc import Site, load_model
        >>> (view,) = head_view(load_model(), [(Site(3, "attention"), 2)], ["The sun is out.", "Good morning."])
        >>> round(sum(view.roles.values()), 3), view.n_texts
        (1.0, 2)
    """
    lm = LoadedModel.of(lm)
    units = [head_of(lm, head) for head in as_list(heads, "the heads")]
    texts = check_texts(texts)
    check_by(by)
    k = whole_number(k, "k", at_least=1)
    vocabulary = torch.tensor(
        sorted({token for row in encode(lm, texts, max_length) for token in row}), dtype=torch.long
    )
    sums = {unit: _Sums(len(vocabulary)) for unit in units}
    reader = _Reader(lm, vocabulary, sums, by, k, skip_first)
    with watched_attention(lm, sorted({site for site, _ in units}), reader.read) as forward:
        for batch in batches(lm, texts, max_length=max_length, describe="reading heads"):
            if batch.ids.shape[1] > 1:
                reader.begin(batch)
                forward(batch)
    if units and not sums[units[0]].texts:
        raise ToxlocError("No text has two tokens, so no position attends to another; give longer texts.")
    return [_view(lm, unit, by, k, sums[unit], reader) for unit in units]


@dataclass
class _Sums:
    """Sums over texts for one head: of the shares of roles, of the entropy, and of the share of each token."""

    n_tokens: int
    roles: Float64[np.ndarray, " 4"] = field(default_factory=lambda: np.zeros(len(ROLES)))
    entropy: float = 0.0
    texts: dict[int, list[tuple[int, int, float, float]]] = field(default_factory=dict)  # position, token, shares

    def __post_init__(self) -> None:
        self.tokens = torch.zeros(self.n_tokens, dtype=torch.float64)


class _Reader:
    """Reduces the pattern of every head in every batch to the sums.

    `vocabulary` are the token ids of the texts, in order; sums over tokens have their places.
    """

    def __init__(
        self,
        lm: LoadedModel,
        vocabulary: Int[Tensor, " n_tokens"],
        sums: dict[Unit, _Sums],
        by: WeighedBy,
        k: int,
        skip_first: bool,
    ):
        self.lm, self.vocabulary, self.sums, self.by, self.k = lm, vocabulary, sums, by, k
        self.skip_first = skip_first
        self.uniform = torch.zeros(len(vocabulary), dtype=torch.float64)
        self.n_texts = torch.zeros(len(vocabulary), dtype=torch.long)

    def begin(self, batch: Batch) -> None:
        self.batch = batch
        self.asking = batch.counted.clone()
        self.asking[:, 0] = False
        self.counted = batch.counted & self.asking.any(1, keepdim=True)  # sources of texts with at least two tokens
        if self.skip_first:
            self.counted[:, 0] = False
        equal = torch.ones(len(batch.ids), *[batch.ids.shape[1]] * 2, device=batch.ids.device).tril()
        self.equal = _shares(self._asked(equal / equal.sum(2, keepdim=True)))
        self._add_tokens(self.uniform, self.equal)
        for ids, counted in zip(batch.ids, self.counted, strict=True):
            self.n_texts[self._places(ids[counted].unique())] += 1

    def read(self, site: Site, attended: Attended) -> None:
        for unit, sums in self.sums.items():
            if unit[0] == site:
                weights = weights_of_head(self.lm, site, unit[1], attended, self.by)
                self._add(sums, self._asked(weights.to(self.batch.ids.device)))

    def _asked(self, weights: Float[Tensor, "batch query source"]) -> Float64[Tensor, "batch query source"]:
        """Return the weights with 0 at the first position and at padding, where nothing is asked."""
        return weights.double().masked_fill(~self.asking[..., None], 0)

    def _add(self, sums: _Sums, weights: Float64[Tensor, "batch query source"]) -> None:
        shares = _shares(weights)
        self._add_tokens(sums.tokens, shares)
        per_query = weights.sum(2, keepdim=True)
        entropy = torch.special.entr(weights / per_query.clamp_min(TINY)).sum((1, 2)) / self.asking.sum(1)
        # The second position asks its previous token, which is the first token, and counts as that.
        own, previous = weights.diagonal(0, 1, 2).sum(1), weights.diagonal(-1, 1, 2)[:, 1:].sum(1)
        own, previous = own / per_query.sum((1, 2)), previous / per_query.sum((1, 2))
        roles = torch.stack([shares[:, 0], previous, own, 1 - shares[:, 0] - previous - own], 1).cpu().numpy()
        top = shares.masked_fill(~self.counted, -1).topk(min(self.k, shares.shape[1]))
        for row in self.asking.any(1).nonzero()[:, 0].tolist():
            sums.roles += roles[row]
            sums.entropy += float(entropy[row])
            sums.texts[self.batch.index[row]] = [
                (place, int(self.batch.ids[row, place]), share, float(self.equal[row, place]))
                for share, place in zip(top.values[row].tolist(), top.indices[row].tolist(), strict=True)
                if share >= 0
            ]

    def _add_tokens(self, total: Float64[Tensor, " d_vocab"], shares: Float64[Tensor, "batch source"]) -> None:
        total.index_add_(0, self._places(self.batch.ids[self.counted]), shares[self.counted].cpu())

    def _places(self, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return torch.searchsorted(self.vocabulary, ids.cpu())


def _shares(weights: Float64[Tensor, "batch query source"]) -> Float64[Tensor, "batch source"]:
    """Return the share of each source in all weights of a text; 0 if there are none."""
    return weights.sum(1) / weights.sum((1, 2))[:, None].clamp_min(TINY)


def _view(lm: LoadedModel, unit: Unit, by: str, k: int, sums: _Sums, reader: _Reader) -> HeadView:
    n = len(sums.texts)
    order = sums.tokens.argsort(descending=True, stable=True)[:k].tolist()
    tokens = [
        Source(
            decode_token(lm, int(reader.vocabulary[place])),
            float(sums.tokens[place]) / n,
            float(reader.uniform[place]) / n,
            n_texts=int(reader.n_texts[place]),
        )
        for place in order
        if reader.n_texts[place]
    ]
    texts = {
        index: [Source(decode_token(lm, token), share, equal, place) for place, token, share, equal in sources]
        for index, sources in sorted(sums.texts.items())
    }
    roles = dict(zip(ROLES, (sums.roles / n).tolist(), strict=True))
    return HeadView(*unit, by, n, roles, sums.entropy / n, tokens, texts)
