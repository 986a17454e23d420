"""What each small group of texts contributed to a pass, so that scores can be resampled without another pass.

Texts are dealt at random into at most `GROUPS` groups of nearly equal size (a text each, if there are no more texts
than that) and every hook adds to its texts' groups. Bootstrap and permutation then move groups instead of texts, and
memory does not grow with the number of texts.
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
BITS = 14  # of the mantissa of a peak
SKETCH = 48  # columns of each side of the gradient's sketch


def deal(
    n_toxic: int, n_neutral: int, paired: bool, seed: int = 0
) -> tuple[Int64[np.ndarray, " n_toxic"], Int64[np.ndarray, " n_neutral"]]:
    """Deal the texts of both sides into groups of nearly equal size; pairs go to groups of the same number.

    Groups of one size on both sides can be exchanged for one another, which is what a permutation test needs.
    """
    size = -(-max(n_toxic, n_neutral) // GROUPS)
    rng = np.random.default_rng(seed)
    toxic = rng.permutation(n_toxic) % -(-n_toxic // size)
    return toxic, toxic if paired else rng.permutation(n_neutral) % -(-n_neutral // size)


class Peaks:
    """The largest activation of every unit in every text, in a temporary file: float32 [n_texts, n_units] per site.

    A unit's activation is a neuron's a, or the Euclidean norm of a head's z.
    """

    def __init__(self, views: Sequence[SiteView], n_texts: int):
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="toxloc-")  # noqa: SIM115  (lives as long as this does)
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

        They are rounded, since the same words before a token give it equal activations that come out different in the
        last bits in another batch, and would get different ranks.
        """
        mantissa, exponent = peaks.float().cpu().frexp()
        self._map(site)[list(index)] = ((mantissa * 2**BITS).round() / 2**BITS).ldexp(exponent).numpy()

    def at(self, site: AnySite) -> tuple[Float[np.ndarray, "n_texts n_units"], Int64[np.ndarray, " n_texts"]]:
        """Read a site's peaks, and which text each row is; texts of which no token is kept are left out."""
        peaks = np.array(self._map(site))
        index = np.flatnonzero(np.isfinite(peaks[:, 0]))
        return peaks[index], index


@dataclass
class Contributions:
    """Sums over the tokens of every group of one set of texts.

    Attributes:
        group: the group of every text.
        tokens: tokens that entered the moments.
        predicted: tokens predicted (0 where no gradients were gathered).
        outputs: sum of m, by site.
        squares: sum of m squared, by site.
        attribution: minus the sum of <m - b, dNLL/dm>, by site: what the site's units take off the summed NLL, to first
            order. Where a norm follows the site, which would undo a scaling of all its units, it is that of the norm's
            output instead.
        sketch: P G Q by site, with G the group's summed gradient and P, Q random: inner products of sketches are, on
            average, those of the gradients themselves.
        peaks: largest activations of every text; None where they were not asked for.
    """

    group: Int64[np.ndarray, " n_texts"]
    tokens: Float[Tensor, " groups"]
    predicted: Float[Tensor, " groups"]
    outputs: BySite[Float[Tensor, "groups d_model"]]
    squares: BySite[Float[Tensor, "groups d_model"]]
    attribution: BySite[Float[Tensor, " groups"]]
    sketch: BySite[Float[Tensor, "groups k q"]]
    peaks: Peaks | None


class Gatherer:
    """Fills `Contributions` from inside the hooks of one pass."""

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
        # Apple's devices have no float64; there the sums over a handful of texts are left in float32.
        self.wide = torch.float32 if lm.device.type == "mps" else torch.float64

        def zeros(*shape: int, view: SiteView | None = None) -> Tensor:
            where = lm.device if view is None else view.device
            return torch.zeros(n_groups, *shape, device=where, dtype=self.wide)

        backward = views if gradients else []
        self.sums = Contributions(
            group,
            tokens=zeros(),
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
        """Say which texts the next batch holds and which of its tokens count."""
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
        """Add a site's outputs."""
        m, kept, groups = m.float(), self.kept[:, None].to(m.device).float(), self.groups.to(m.device)
        self.sums.outputs[site].index_add_(0, groups, torch.bmm(kept, m)[:, 0].to(self.wide))
        self.sums.squares[site].index_add_(0, groups, torch.bmm(kept, m * m)[:, 0].to(self.wide))

    def see_contribution(
        self, site: Site, written: Float[Tensor, "batch pos d_model"], delta: Float[Tensor, "batch pos d_model"]
    ) -> None:
        """Add what a site's units alone put into the residual stream times its gradient, 0 where none counts."""
        gain = -(written.float() * delta).sum((1, 2)).to(self.wide)
        self.sums.attribution[site].index_add_(0, self.groups.to(delta.device), gain)

    def see_gradients(
        self, site: Site, a: Float[Tensor, "batch pos d_in"], delta: Float[Tensor, "batch pos d_model"]
    ) -> None:
        """Add a site's gradients; `delta` is 0 where a token does not count."""
        P, Q = self.P[a.shape[-1]].to(a.device), self.Q.to(a.device)
        self.sums.sketch[site].index_add_(0, self.groups.to(a.device), torch.bmm((a @ P).mT, delta @ Q))


def _sketcher(d: int, device: torch.device) -> Float[Tensor, "d k"]:
    """Random matrix with orthogonal columns, scaled so that it keeps inner products on average."""
    k = min(SKETCH, d)
    normal = torch.randn(d, k, generator=torch.Generator().manual_seed(d))
    columns: Tensor = torch.linalg.qr(normal).Q * (d / k) ** 0.5
    return columns.to(device)
