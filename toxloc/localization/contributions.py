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

GROUPS = 128
BITS = 14  # of the mantissa of a peak
SKETCH = 48  # columns of each side of the gradient's sketch


def deal(n_toxic: int, n_neutral: int, paired: bool, seed: int = 0
         ) -> tuple[Int64[np.ndarray, " n_toxic"], Int64[np.ndarray, " n_neutral"]]:
    """Deal the texts of both sides into groups of nearly equal size; pairs go to groups of the same number.

    Groups of one size on both sides can be exchanged for one another, which is what a permutation test needs.
    """
    size = -(-max(n_toxic, n_neutral) // GROUPS)
    rng = np.random.default_rng(seed)
    toxic = rng.permutation(n_toxic) % -(-n_toxic // size)
    return toxic, toxic if paired else rng.permutation(n_neutral) % -(-n_neutral // size)


class Peaks:
    """The largest activation of every neuron in every text, kept in a temporary file: [n_texts, d_mlp] a layer."""

    def __init__(self, n_layers: int, d_mlp: int):
        self.n_layers, self.d_mlp = n_layers, d_mlp
        self.index: list[list[int]] = []
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="toxloc-")  # noqa: SIM115  (lives as long as this does)
        self._written = 0

    def begin(self, index: Sequence[int]) -> None:
        """Announce the texts of the batch whose layers `write` gives in order."""
        self.index.append(list(index))

    def write(self, peaks: Float[Tensor, "batch d_mlp"]) -> None:
        """Add one layer of the batch that began last, rounded: equal words before it give a token equal activations.

        They would come out different in the last bits where they stand in other batches, and be ranked.
        """
        mantissa, exponent = peaks.float().cpu().frexp()
        self._file.write(((mantissa * 2**BITS).round() / 2**BITS).ldexp(exponent).numpy().tobytes())

    def layer(self, layer: int) -> tuple[Float[np.ndarray, "n_texts d_mlp"], Int64[np.ndarray, " n_texts"]]:
        """Read one layer, and which text each row is; texts of which no token is kept are left out."""
        self._file.flush()
        rows, start = [], 0
        for texts in self.index:
            count = len(texts) * self.d_mlp
            self._file.seek(4 * (start + layer * count))
            rows.append(np.frombuffer(self._file.read(4 * count), dtype=np.float32).reshape(len(texts), self.d_mlp))
            start += self.n_layers * count
        peaks, index = np.concatenate(rows), np.array([i for texts in self.index for i in texts], dtype=np.int64)
        seen = np.isfinite(peaks[:, 0])
        return peaks[seen], index[seen]


@dataclass
class Contributions:
    """Sums over the tokens of every group of one set of texts; lists have one entry a layer.

    Attributes:
        group: the group of every text.
        tokens: tokens that entered the moments.
        predicted: tokens predicted (0 where no gradients were gathered).
        outputs: sum of m.
        squares: sum of m squared.
        attribution: minus the sum of <m - b_out, dNLL/dm>: what the layer's neurons take off the summed NLL, to first
            order. Where a norm follows the MLP, which would undo a scaling of all its neurons, it is that of the
            norm's output instead.
        sketch: P G Q with G the group's summed gradient and P, Q random: inner products of sketches are, on average,
            those of the gradients themselves.
        peaks: largest activations of every text; None where they were not asked for.
    """

    group: Int64[np.ndarray, " n_texts"]
    tokens: Float[Tensor, " groups"]
    predicted: Float[Tensor, " groups"]
    outputs: list[Float[Tensor, "groups d_model"]]
    squares: list[Float[Tensor, "groups d_model"]]
    attribution: list[Float[Tensor, " groups"]]
    sketch: list[Float[Tensor, "groups k q"]]
    peaks: Peaks | None


class Gatherer:
    """Fills `Contributions` from inside the hooks of one pass."""

    def __init__(self, lm: LoadedModel, group: Int64[np.ndarray, " n_texts"], *, gradients: bool, peaks: bool):
        self.lm, n_groups = lm, int(group.max()) + 1
        # Apple's devices have no float64; there the sums over a handful of texts are left in float32.
        self.wide = torch.float32 if lm.device.type == "mps" else torch.float64

        def zeros(*shape: int, layer: int | None = None) -> Tensor:
            where = lm.device if layer is None else lm.device_of(layer)
            return torch.zeros(n_groups, *shape, device=where, dtype=self.wide)

        layers, backward = range(lm.n_layers), range(lm.n_layers if gradients else 0)
        k, q = min(SKETCH, lm.d_mlp), min(SKETCH, lm.d_model)
        self.found = Contributions(
            group, tokens=zeros(), predicted=zeros(),
            outputs=[zeros(lm.d_model, layer=i) for i in layers], squares=[zeros(lm.d_model, layer=i) for i in layers],
            attribution=[zeros(layer=i) for i in backward], sketch=[zeros(k, q, layer=i).float() for i in backward],
            peaks=Peaks(lm.n_layers, lm.d_mlp) if peaks else None,
        )
        self.P, self.Q = _sketcher(lm.d_mlp, lm.device), _sketcher(lm.d_model, lm.device)
        self.groups = torch.zeros(0, dtype=torch.long)
        self.kept: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)

    def begin(self, index: Sequence[int], kept: Bool[Tensor, "batch pos"], predicted: Float[Tensor, " batch"]) -> None:
        """Say which texts the next batch holds and which of its tokens count."""
        self.groups = torch.from_numpy(self.found.group[index]).to(self.lm.device)
        self.kept = kept
        self.found.tokens.index_add_(0, self.groups, kept.sum(1).to(self.wide))
        self.found.predicted.index_add_(0, self.groups, predicted.to(self.wide))
        if self.found.peaks is not None:
            self.found.peaks.begin(index)

    def see_neurons(self, a: Float[Tensor, "batch pos d_mlp"]) -> None:
        """Note the peaks of one layer; layers come in order."""
        if self.found.peaks is not None:
            self.found.peaks.write(a.masked_fill(~self.kept.to(a.device)[..., None], -torch.inf).amax(1))

    def see_outputs(self, layer: int, m: Float[Tensor, "batch pos d_model"]) -> None:
        """Add one layer's outputs."""
        m, kept, groups = m.float(), self.kept[:, None].to(m.device).float(), self.groups.to(m.device)
        self.found.outputs[layer].index_add_(0, groups, torch.bmm(kept, m)[:, 0].to(self.wide))
        self.found.squares[layer].index_add_(0, groups, torch.bmm(kept, m * m)[:, 0].to(self.wide))

    def see_contribution(self, layer: int, own: Float[Tensor, "batch pos d_model"],
                         delta: Float[Tensor, "batch pos d_model"]) -> None:
        """Add what a layer's neurons alone put into the residual stream times its gradient, 0 where none counts."""
        gain = -(own.float() * delta).sum((1, 2)).to(self.wide)
        self.found.attribution[layer].index_add_(0, self.groups.to(delta.device), gain)

    def see_gradients(self, layer: int, a: Float[Tensor, "batch pos d_mlp"],
                      delta: Float[Tensor, "batch pos d_model"]) -> None:
        """Add one layer's gradients; `delta` is 0 where a token does not count."""
        P, Q = self.P.to(a.device), self.Q.to(a.device)
        self.found.sketch[layer].index_add_(0, self.groups.to(a.device), torch.bmm((a @ P).mT, delta @ Q))


def _sketcher(d: int, device: torch.device) -> Float[Tensor, "d k"]:
    """Random matrix with orthogonal columns, scaled so that it keeps inner products on average."""
    k = min(SKETCH, d)
    normal = torch.randn(d, k, generator=torch.Generator().manual_seed(d))
    columns: Tensor = torch.linalg.qr(normal).Q * (d / k) ** 0.5
    return columns.to(device)
