"""Sums over small groups of texts, from which scores are resampled without another pass over the model.

Texts are assigned at random to at most `GROUPS` groups of nearly equal size (one text per group if there are at most
`GROUPS` texts). Every hook adds its values to the groups of its texts. Bootstrap and permutation then resample groups
instead of texts, and memory does not grow with the number of texts.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..models.loaded import LoadedModel
from ..models.site_view import SiteView
from ..models.sites import AnySite, BySite, Site

GROUPS = 128
GROUPS_OF_PAIRS = 512  # of pairs whose sites have a single number each
BITS = 14  # mantissa bits kept of each peak
SKETCH = 48  # rows and columns of the sketch of a gradient


def random_groups(
    n_toxic: int, n_neutral: int, paired: bool, seed: int = 0, limit: int = GROUPS
) -> tuple[Int64[np.ndarray, " n_toxic"], Int64[np.ndarray, " n_neutral"]]:
    """Assign the texts of both sides to random groups of nearly equal size; both texts of a pair get the same number.

    The group size is the same on both sides, so that toxic and neutral groups can be exchanged in a permutation test.
    A side has at most `limit` groups.

    Returns:
        The group of each toxic text and of each neutral text.
    """
    size = -(-max(n_toxic, n_neutral) // limit)
    rng = np.random.default_rng(seed)
    toxic = rng.permutation(n_toxic) % -(-n_toxic // size)
    return toxic, toxic if paired else rng.permutation(n_neutral) % -(-n_neutral // size)


class Peaks:
    """The largest activation of every unit in every text, in a temporary file: float32 [n_texts, n_units] per site.

    The activation of a neuron is a, and that of a head is the Euclidean norm of its z.
    """

    def __init__(self, views: Sequence[SiteView], n_texts: int):
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="toxloc-")  # noqa: SIM115  (stays open as long as this object)
        self._n_texts, self._begins, total = n_texts, BySite[tuple[int, int]](), 0
        for view in views:
            self._begins[view.site] = (total, view.n_units)
            total += 4 * n_texts * view.n_units
        self._file.truncate(total)

    def _map(self, site: AnySite) -> np.memmap:
        start, n_units = self._begins[site]
        return np.memmap(self._file, dtype=np.float32, offset=start, shape=(self._n_texts, n_units))

    def write(self, site: AnySite, index: Sequence[int], peaks: Float[Tensor, "batch n_units"]) -> None:
        """Store the peaks of some texts at a site.

        Peaks are rounded to `BITS` mantissa bits. Texts that begin with the same words have equal activations there,
        but the last bits differ between batches, so that without rounding equal peaks would get different ranks.
        """
        mantissa, exponent = peaks.float().cpu().frexp()
        self._map(site)[list(index)] = ((mantissa * 2**BITS).round() / 2**BITS).ldexp(exponent).numpy()

    def at(self, site: AnySite) -> tuple[Float[np.ndarray, "n_texts n_units"], Int64[np.ndarray, " n_texts"]]:
        """Return a site's peaks and the text index of each row; texts without a token that counts are left out."""
        peaks = np.array(self._map(site))
        index = np.flatnonzero(np.isfinite(peaks[:, 0]))
        return peaks[index], index


@dataclass
class Contributions:
    """Sums over the tokens of each group of one set of texts.

    Attributes:
        group: group of each text.
        tokens: number of tokens that entered the moments.
        counts: the same by site: of a routed expert, only the tokens that are routed to it.
        mass: sum of the router weights of an expert over the tokens that entered the moments, by expert.
        predicted: number of tokens that the model predicts: all real tokens but the first of each text.
        outputs: sum of m, by site.
        squares: sum of m squared, by site.
        attribution: minus the sum of <m - b, dNLL/dm>, by site: to first order, how much the site's units reduce the
            summed NLL. If a norm follows the site, the norm would undo a scaling of all units, so its output is used
            instead of m - b.
        sketch: PᵀGQ by site, with G the summed gradient of the group and P, Q random matrices: the inner product of two
            sketches is, on average, the inner product of the gradients.
        peaks: largest activations of each text; None if they were not gathered.
    """

    group: Int64[np.ndarray, " n_texts"]
    tokens: Float[Tensor, " groups"]
    counts: BySite[Float[Tensor, " groups"]]
    mass: BySite[Float[Tensor, " groups"]]
    predicted: Float[Tensor, " groups"]
    outputs: BySite[Float[Tensor, "groups d_model"]]
    squares: BySite[Float[Tensor, "groups d_model"]]
    attribution: BySite[Float[Tensor, " groups"]]
    sketch: BySite[Float[Tensor, "groups k q"]]
    peaks: Peaks | None


class Gatherer:
    """Accumulates `Contributions` in the hooks of one pass."""

    def __init__(
        self,
        lm: LoadedModel,
        views: Sequence[SiteView],
        group: Int64[np.ndarray, " n_texts"],
        *,
        gradients: bool,
        peaks: bool,
    ):
        self.lm, n_groups, d = lm, int(group.max()) + 1, lm.d_model
        # MPS devices have no float64; there the sums over each small group of texts stay in float32.
        self.wide = torch.float32 if lm.device.type == "mps" else torch.float64

        def zeros(*shape: int, view: SiteView | None = None) -> Tensor:
            device = lm.device if view is None else view.device
            return torch.zeros(n_groups, *shape, device=device, dtype=self.wide)

        backward = views if gradients else []
        tokens = zeros()
        self.sums = Contributions(
            group,
            tokens=tokens,
            counts=BySite({v.site: zeros(view=v) if v.bank else tokens for v in views}),
            mass=BySite({v.site: zeros(view=v) for v in views if v.bank}),
            predicted=zeros(),
            outputs=BySite({v.site: zeros(d, view=v) for v in views}),
            squares=BySite({v.site: zeros(d, view=v) for v in views}),
            attribution=BySite({v.site: zeros(view=v) for v in backward}),
            sketch=BySite({v.site: zeros(min(SKETCH, v.d_in), min(SKETCH, d), view=v).float() for v in backward}),
            peaks=Peaks(views, len(group)) if peaks else None,
        )
        self.P = {d_in: _sketcher(d_in, lm.device) for d_in in {v.d_in for v in views}}
        self.Q = _sketcher(d, lm.device)
        self.index: Sequence[int] = []
        self.groups = torch.zeros(0, dtype=torch.long)
        self.kept: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)

    def begin(self, index: Sequence[int], kept: Bool[Tensor, "batch pos"], predicted: Float[Tensor, " batch"]) -> None:
        """Set the texts of the next batch and the tokens that count, and add the token counts to the groups."""
        self.index = index
        self.groups = torch.from_numpy(self.sums.group[index]).to(self.lm.device)
        self.kept = kept
        self.sums.tokens.index_add_(0, self.groups, kept.sum(1).to(self.wide))
        self.sums.predicted.index_add_(0, self.groups, predicted.to(self.wide))

    def see_keys(self, view: SiteView, a: Float[Tensor, "batch pos d_in"]) -> None:
        """Store the peaks of a site's units."""
        if self.sums.peaks is not None:
            if view.width > 1:
                a = a.unflatten(-1, (view.n_units, view.width)).float().norm(dim=-1)
            peaks = a.masked_fill(~self.kept.to(a.device)[..., None], -torch.inf).amax(1)
            self.sums.peaks.write(view.site, self.index, peaks)

    def see_outputs(self, site: Site, m: Float[Tensor, "batch pos d_model"]) -> None:
        """Add a site's outputs and their squares."""
        m, kept, groups = m.float(), self.kept[:, None].to(m.device).float(), self.groups.to(m.device)
        self.sums.outputs[site].index_add_(0, groups, torch.bmm(kept, m)[:, 0].to(self.wide))
        self.sums.squares[site].index_add_(0, groups, torch.bmm(kept, m * m)[:, 0].to(self.wide))

    def see_routed(
        self,
        view: SiteView,
        texts: Int64[Tensor, " n"],
        kept: Bool[Tensor, " n"],
        router: Float[Tensor, " n"],
        keys: Float[Tensor, "n d_in"],
    ) -> None:
        """Add what an expert does on the real tokens that are routed to it: counts, router weights, outputs, peaks.

        Args:
            view: the expert.
            texts: row of the batch that each token belongs to.
            kept: whether the token counts.
            router: router weight of each token.
            keys: the expert's keys at each token.
        """
        sums, site, groups = self.sums, view.site, self.groups.to(keys.device)[texts]
        weights = kept.to(self.wide)
        sums.counts[site].index_add_(0, groups, weights)
        sums.mass[site].index_add_(0, groups, router.to(self.wide) * weights)
        m = keys.float() @ view.W.float()
        if view.bias is not None:
            m = m + router[:, None].float() * view.bias.float()
        m = m * kept[:, None]
        sums.outputs[site].index_add_(0, groups, m.to(self.wide))
        sums.squares[site].index_add_(0, groups, (m * m).to(self.wide))
        if sums.peaks is not None:
            # Where no token of a text is routed to the expert, its neurons contribute nothing: their peak is 0.
            any_kept = self.kept.to(keys.device).any(1)
            peaks = keys.new_zeros(len(any_kept), keys.shape[1], dtype=torch.float32)
            index = texts[kept][:, None].expand(-1, keys.shape[1])
            peaks.scatter_reduce_(0, index, keys[kept].float(), "amax", include_self=False)
            sums.peaks.write(site, self.index, peaks.masked_fill(~any_kept[:, None], -torch.inf))

    def see_routed_gradients(
        self,
        view: SiteView,
        texts: Int64[Tensor, " n"],
        keys: Float[Tensor, "n d_in"],
        delta: Float[Tensor, "n d_model"],
    ) -> None:
        """Add the attribution and the sketch of an expert's gradient; `delta` is 0 where a token does not count."""
        site, groups = view.site, self.groups.to(delta.device)[texts]
        gain = -((keys @ view.W.float()) * delta).sum(1).to(self.wide)
        self.sums.attribution[site].index_add_(0, groups, gain)
        P, Q = self.P[keys.shape[-1]].to(keys.device), self.Q.to(keys.device)
        self.sums.sketch[site].index_add_(0, groups, (keys @ P)[:, :, None] * (delta @ Q)[:, None, :])

    def see_contribution(
        self, site: Site, written: Float[Tensor, "batch pos d_model"], delta: Float[Tensor, "batch pos d_model"]
    ) -> None:
        """Add a site's attribution: minus the output of its units, `written`, times the gradient `delta`.

        `delta` is 0 where a token does not count.
        """
        gain = -(written.float() * delta).sum((1, 2)).to(self.wide)
        self.sums.attribution[site].index_add_(0, self.groups.to(delta.device), gain)

    def see_gradients(
        self, site: Site, a: Float[Tensor, "batch pos d_in"], delta: Float[Tensor, "batch pos d_model"]
    ) -> None:
        """Add the sketch of a site's gradient; `delta` is 0 where a token does not count."""
        P, Q = self.P[a.shape[-1]].to(a.device), self.Q.to(a.device)
        self.sums.sketch[site].index_add_(0, self.groups.to(a.device), torch.bmm((a @ P).mT, delta @ Q))


def _sketcher(d: int, device: torch.device) -> Float[Tensor, "d k"]:
    """Return a random matrix with orthogonal columns, scaled so that it preserves inner products on average."""
    k = min(SKETCH, d)
    normal = torch.randn(d, k, generator=torch.Generator().manual_seed(d))
    columns: Tensor = torch.linalg.qr(normal).Q * (d / k) ** 0.5
    return columns.to(device)
