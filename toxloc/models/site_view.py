"""A site in a model: its live weight, the hooks that show what it reads and writes, and its units."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .sites import Site

Hook = str | nn.Module  # name of a hook point, or the module whose output is seen


@dataclass(frozen=True, eq=False)
class SiteView:
    """A linear map of one model that writes to the residual stream: m = keys @ W + bias.

    Attributes:
        site: its name.
        n_units: its units: neurons of the MLP, heads of the attention.
        weights: returns W and the bias as they are now, since a model may be moved to another device or type.
        linear: the module of `lm.hf` that holds W; None without `lm.hf`.
        norm: the module of `lm.hf` between the map and the residual stream; None where the family has none.
        norm_offset: that norm multiplies by (norm_offset + its weight).
        keys_hook: shows the keys [batch, pos, d_in]: `hook_post` of the MLP, `hook_z` of the attention.
        output_hook: shows m [batch, pos, d_model], before any norm that follows.
        write_hook: shows what is added to the residual stream: m, normed where the family does so.
    """

    site: Site
    n_units: int
    weights: Callable[[], tuple[Tensor, Tensor | None]]
    linear: nn.Module | None
    norm: nn.Module | None
    norm_offset: float
    has_norm: bool
    keys_hook: Hook
    output_hook: Hook
    write_hook: Hook

    @property
    def W(self) -> Float[Tensor, "d_in d_model"]:
        """Live view of the weight; in-place changes change the model."""
        return self.weights()[0]

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """Live bias, or None where the family has none."""
        return self.weights()[1]

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return int(self.W.shape[0])

    @property
    def width(self) -> int:
        """Keys per unit: 1 for a neuron, d_head for a head."""
        return self.d_in // self.n_units

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.W.device

    @property
    def writer(self) -> nn.Module | None:
        """The module of `lm.hf` whose output is added to the residual stream."""
        return self.linear if self.norm is None else self.norm

    def rows(self, unit: int) -> slice:
        """Return the rows of W that a unit writes with."""
        return slice(unit * self.width, (unit + 1) * self.width)

    def per_key(self, factors: Float[Tensor, " n_units"]) -> Float[Tensor, " d_in"]:
        """Return one factor per key from one per unit."""
        return factors.repeat_interleave(self.width)

    def per_unit(self, keys: Float[Tensor, "*some d_in"]) -> Float[Tensor, "*some n_units"]:
        """Return the sum over each unit's keys."""
        return keys if self.width == 1 else keys.unflatten(-1, (self.n_units, self.width)).sum(-1)

    def biased(self) -> Iterator[Tensor]:
        """Yield the weight and, where there is a bias, the bias."""
        yield self.W
        if self.bias is not None:
            yield self.bias


def weights_of(linear: nn.Module) -> tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"] | None]:
    """Return live views of a linear map's weight, the inputs first, and of its bias, if it has one.

    GPT-2's Conv1D stores the weight so; all other families store it transposed.
    """
    weight, bias = linear.get_parameter("weight"), linear.bias
    return weight if isinstance(linear, Conv1D) else weight.T, bias if isinstance(bias, Tensor) else None
