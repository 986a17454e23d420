"""Scale the output units of the MLPs' linear maps: the base class of AurA and Damp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ToxlocError
from ..models.sites import BySite, Site
from .base import Intervention
from .settings import check_mode

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..models.activations import Place
    from ..models.loaded import LoadedModel


class UnitScaling(Intervention):
    """Multiply each output unit of the MLPs' linear maps by a factor.

    The units of a layer are the concatenated outputs of its MLP's linear maps (`models.activations.mlp_linears`): the
    inputs of the non-linearity (d_mlp; in a gated MLP, gate and then up, 2 d_mlp), followed by the output of W_out
    (d_model), before any norm that follows. Therefore `mode="weights"`, which multiplies the weights and the bias of
    each unit, has the same effect in every family. The units of a routed expert are its neurons.

    Args:
        factors: factor of each unit, as a matrix [n_layers, n_units] for the MLP of every layer, or by site; 1 leaves
            the unit unchanged.
        mode: "hooks" adds hooks to both module trees, `lm.hooked` and `lm.hf`; "weights" edits the weights.
        settings: settings of the fit, for files and reports.

    Raises:
        ToxlocError: a factor that is not finite, or an unknown mode.

    Example:
        >>> factors = torch.ones(lm.n_layers, lm.d_mlp + lm.d_model)   # doctest: +SKIP
        >>> factors[3, 17] = 0                                         # doctest: +SKIP
        >>> with UnitScaling(factors).applied(lm): ...                 # doctest: +SKIP
    """

    kind: ClassVar[str] = "unit-scaling"
    bakeable: ClassVar[bool] = True

    def __init__(
        self,
        factors: Float[Tensor, "n_layers n_units"] | Mapping[Site, Float[Tensor, " _n_units"]],
        *,
        mode: str = "hooks",
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_mode(mode)
        if not isinstance(factors, Mapping):
            if factors.ndim != 2:
                raise ToxlocError(
                    f"factors has the shape {tuple(factors.shape)}; give a row of factors for each layer."
                )
            factors = {Site(layer): row for layer, row in enumerate(factors)}
        total = sum(row.numel() for row in factors.values())
        if bad := sum(int((~row.isfinite()).sum()) for row in factors.values()):
            raise ToxlocError(f"{bad} of {total} factors are infinite or NaN; every unit needs a finite factor.")
        self.by_site = BySite({Site.of(site): row.float() for site, row in factors.items()})
        self.mode, self.settings = mode, settings or {}

    @property
    def factors(self) -> Float[Tensor, "n_layers n_units"]:
        """The factors as a matrix.

        Raises:
            ToxlocError: the model does not have one MLP per layer, all of one width.
        """
        import torch

        if not self._is_matrix:
            raise ToxlocError("These factors are not a matrix with a row per layer; read them from by_site.")
        return torch.stack(list(self.by_site.values()))

    @property
    def _is_matrix(self) -> bool:
        widths = {len(row) for row in self.by_site.values()}
        return len(widths) == 1 and list(self.by_site) == [Site(layer) for layer in range(len(self.by_site))]

    def __repr__(self) -> str:
        settings = "".join(f"{name}={value:g}, " for name, value in self.settings.items())
        changed = sum(int((row != 1).sum()) for row in self.by_site.values())
        return f"{type(self).__name__}({changed} units, {settings}mode={self.mode!r})"

    @property
    def in_weights(self) -> bool:
        """Whether the mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> UnitScaling:
        """Return the same scaling with `mode="weights"`."""
        return type(self)(self.by_site, mode="weights", settings=self.settings).with_fit_of(self)

    def config(self) -> dict[str, Any]:
        """Return the settings; the factors are in the tensors."""
        return {**self.settings, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the model has a different number of layers or units."""
        expected = {site: sum(widths_of(lm, site)) for site in lm.sites_of_choice("mlp")}
        given = {site: len(row) for site, row in self.by_site.items()}
        if self._is_matrix and given != expected:
            first = next(iter(expected.values()))
            raise ToxlocError(
                f"{self!r} has factors for {len(given)} layers of {given[Site(0)]} "
                f"units; {lm.name} has {len(expected)} layers of {first}. Fit it on this model."
            )
        for site, count in given.items():
            if expected.get(site) != count:
                raise ToxlocError(
                    f"{self!r} has {count} factors for {site.title}; {lm.name} has {expected.get(site, 'no')} units "
                    "there. Fit it on this model."
                )

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ..models.activations import change
        from ..models.weights import overwrite

        for site, place, factor in self._scaled(lm):
            if self.mode == "hooks":
                change(lm, place, factor.mul, stack)
            elif place.expert is not None:
                W = lm.W_out(site)
                overwrite(W, W.float() * factor[:, None], stack)
            else:
                _scale_weights(place, factor, stack)

    def _scaled(self, lm: LoadedModel) -> Iterator[tuple[Site, Place, Tensor]]:
        """Yield each place that has a factor other than 1, with its site and its factors."""
        from ..models.activations import mlp_linears

        for site, row in self.by_site.items():
            row = row.to(lm.at(site).device)
            for place, factor in zip(mlp_linears(lm, site), row.split(widths_of(lm, site)), strict=True):
                if (factor != 1).any():
                    yield site, place, factor

    def _tensors(self) -> dict[str, Tensor]:
        return {"factors": self.factors} if self._is_matrix else {str(site): row for site, row in self.by_site.items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> UnitScaling:
        settings = {name: value for name, value in config.items() if name != "mode"}
        factors = tensors.get("factors", {Site.of(name): row for name, row in tensors.items() if name != "factors"})
        return cls(factors, mode=config["mode"], settings=settings)


def widths_of(lm: LoadedModel, site: Site) -> list[int]:
    """Return the number of units of each linear map of an MLP; of an expert, the number of its neurons."""
    view = lm.at(site)
    if view.bank is not None:
        return [view.d_in]
    return [*(reader.n_outputs for reader in view.readers), lm.d_model]


def _scale_weights(place: Place, factor: Float[Tensor, " d"], stack: ExitStack) -> None:
    """Multiply the outputs of a linear map by scaling its bias and its weight's rows, in the layout of `nn.Linear`."""
    from torch import Tensor
    from transformers.pytorch_utils import Conv1D

    from ..models.weights import overwrite

    columns = place.columns or slice(None)
    assert place.module is not None  # an MLP's linear maps are in the Hugging Face model
    weight, bias = place.module.get_parameter("weight"), place.module.bias
    rows = (weight.T if isinstance(place.module, Conv1D) else weight)[columns]
    overwrite(rows, rows.float() * factor[:, None], stack)
    if isinstance(bias, Tensor):
        overwrite(bias[columns], bias[columns].float() * factor, stack)
