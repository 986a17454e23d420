"""A factor for every output unit of the MLPs' linear maps: the form that AurA and Damp share."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..errors import ToxlocError
from ..localization.auroc import auroc_of
from ..models.activations import Site, change, mlp_linears, pooled
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet
from .base import Intervention, check_mode, overwrite


class UnitScaling(Intervention):
    """Multiply every output unit of the MLPs' linear maps by a factor of its own.

    A layer's units are those of `sites.mlp_linears` one after the other: what goes into the non-linearity (d_mlp; where
    the MLP is gated, gate then up, 2 d_mlp) and what W_out puts out (d_model), before any norm that follows. So
    `mode="weights"`, which multiplies the unit's weights and its bias, does the same in every family.

    Args:
        factors: one for each unit, 1 to leave it alone.
        mode: "hooks" places hooks on both module trees of the model; "weights" edits the weights.
        settings: what it was made with, for files and reports.

    Raises:
        ToxlocError: a factor that is not finite, an unknown mode.

    Example:
        >>> factors = torch.ones(lm.n_layers, lm.d_mlp + lm.d_model)   # doctest: +SKIP
        >>> factors[3, 17] = 0                                         # doctest: +SKIP
        >>> with UnitScaling(factors).applied(lm): ...                 # doctest: +SKIP
    """

    kind: ClassVar[str] = "unit-scaling"
    bakeable: ClassVar[bool] = True

    def __init__(self, factors: Float[Tensor, "n_layers n_units"], *, mode: str = "hooks",
                 settings: dict[str, Any] | None = None):
        super().__init__()
        check_mode(mode)
        if not factors.isfinite().all():
            raise ToxlocError("Every unit needs a finite factor; some are infinite or NaN.")
        self.factors, self.mode, self.settings = factors.float(), mode, settings or {}

    def __repr__(self) -> str:
        settings = "".join(f"{name}={value:g}, " for name, value in self.settings.items())
        return f"{type(self).__name__}({int((self.factors != 1).sum())} units, {settings}mode={self.mode!r})"

    @property
    def in_weights(self) -> bool:
        """Whether its mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> "UnitScaling":
        """Return the same with `mode="weights"`."""
        baked = type(self)(self.factors, mode="weights", settings=self.settings)
        baked.fitted_on, baked.record = self.fitted_on, self.record
        return baked

    def config(self) -> dict[str, Any]:
        """Return the settings; the factors are in the tensors."""
        return {**self.settings, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the model has not as many layers or units."""
        shape = (lm.n_layers, sum(_widths(lm, mlp_linears(lm, 0))))
        if tuple(self.factors.shape) != shape:
            raise ToxlocError(f"{self!r} has factors for {self.factors.shape[0]} layers of {self.factors.shape[1]} "
                              f"units; {lm.name} has {shape[0]} layers of {shape[1]}. Fit it on this model.")

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for site, factor in self._scaled(lm):
            if self.mode == "weights":
                _scale_weights(site, factor, stack)
            else:
                change(lm, site, factor.mul, stack)

    def _scaled(self, lm: LoadedModel) -> Iterator[tuple[Site, Tensor]]:
        """The sites where a factor is not 1, with the factors there."""
        for layer, row in enumerate(self.factors):
            row = row.to(lm.device_of(layer))
            sites = mlp_linears(lm, layer)
            for site, factor in zip(sites, row.split(_widths(lm, sites)), strict=True):
                if (factor != 1).any():
                    yield site, factor

    def _tensors(self) -> dict[str, Tensor]:
        return {"factors": self.factors}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "UnitScaling":
        settings = {name: value for name, value in config.items() if name != "mode"}
        return cls(tensors["factors"], mode=config["mode"], settings=settings)


def unit_aurocs(lm: LoadedModel, pairs: ContrastSet) -> Float64[np.ndarray, "n_layers n_units"]:
    """AUROC of every unit, in the order of `UnitScaling`: of its largest value in a text, toxic against neutral texts.

    The largest value is over the text's real tokens but the first, whose activations can be an attention sink's.

    Raises:
        ToxlocError: no unit tells the two sides apart.
    """
    sites = [site for layer in range(lm.n_layers) for site in mlp_linears(lm, layer)]
    toxic, neutral = (pooled(lm, texts, sites, "max", describe=f"units, {side} texts")
                      for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral)))
    aurocs = np.concatenate([auroc_of(t.numpy(), n.numpy()) for t, n in zip(toxic, neutral, strict=True)])
    if not (aurocs > 0.5).any():
        raise ToxlocError(f"No unit has an AUROC over .5 on the contrast set {pairs.name!r}: its two sides look alike; "
                          "give toxic texts that differ from the neutral ones.")
    return aurocs.reshape(lm.n_layers, -1)


def _widths(lm: LoadedModel, sites: list[Site]) -> list[int]:
    """How many units each linear map of a layer has."""
    return [lm.d_mlp] * (len(sites) - 1) + [lm.d_model]


def _scale_weights(site: Site, factor: Float[Tensor, " d"], stack: ExitStack) -> None:
    """Multiply what the outputs of a linear map are made of: rows of its weight as `nn.Linear` keeps it, and bias."""
    part = site.part or slice(None)
    assert site.module is not None  # an MLP's linear maps are found in the Hugging Face model
    weight, bias = site.module.get_parameter("weight"), site.module.bias
    rows = (weight.T if isinstance(site.module, Conv1D) else weight)[part]
    overwrite(rows, rows.float() * factor[:, None], stack)
    if isinstance(bias, Tensor):
        overwrite(bias[part], bias[part].float() * factor, stack)
