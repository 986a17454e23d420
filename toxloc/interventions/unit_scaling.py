"""Scale the output units of the MLPs' linear maps: the base class of AurA and Damp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ToxlocError
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
    each unit, has the same effect in every family.

    Args:
        factors: factor of each unit; 1 leaves the unit unchanged.
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
        self, factors: Float[Tensor, "n_layers n_units"], *, mode: str = "hooks", settings: dict[str, Any] | None = None
    ):
        super().__init__()
        check_mode(mode)
        if factors.ndim != 2:
            raise ToxlocError(f"factors has the shape {tuple(factors.shape)}; give a row of factors for each layer.")
        if bad := int((~factors.isfinite()).sum()):
            raise ToxlocError(
                f"{bad} of {factors.numel()} factors are infinite or NaN; every unit needs a finite factor."
            )
        self.factors, self.mode, self.settings = factors.float(), mode, settings or {}

    def __repr__(self) -> str:
        settings = "".join(f"{name}={value:g}, " for name, value in self.settings.items())
        return f"{type(self).__name__}({int((self.factors != 1).sum())} units, {settings}mode={self.mode!r})"

    @property
    def in_weights(self) -> bool:
        """Whether the mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> UnitScaling:
        """Return the same scaling with `mode="weights"`."""
        return type(self)(self.factors, mode="weights", settings=self.settings).with_fit_of(self)

    def config(self) -> dict[str, Any]:
        """Return the settings; the factors are in the tensors."""
        return {**self.settings, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the model has a different number of layers or units."""
        from ..models.activations import mlp_linears

        shape = (lm.n_layers, sum(_widths(lm, mlp_linears(lm, 0))))
        if tuple(self.factors.shape) != shape:
            raise ToxlocError(
                f"{self!r} has factors for {self.factors.shape[0]} layers of {self.factors.shape[1]} "
                f"units; {lm.name} has {shape[0]} layers of {shape[1]}. Fit it on this model."
            )

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ..models.activations import change

        for place, factor in self._scaled(lm):
            if self.mode == "weights":
                _scale_weights(place, factor, stack)
            else:
                change(lm, place, factor.mul, stack)

    def _scaled(self, lm: LoadedModel) -> Iterator[tuple[Place, Tensor]]:
        """Yield each place that has a factor other than 1, with its factors."""
        from ..models.activations import mlp_linears

        for layer, row in enumerate(self.factors):
            row = row.to(lm.device_of(layer))
            places = mlp_linears(lm, layer)
            for place, factor in zip(places, row.split(_widths(lm, places)), strict=True):
                if (factor != 1).any():
                    yield place, factor

    def _tensors(self) -> dict[str, Tensor]:
        return {"factors": self.factors}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> UnitScaling:
        settings = {name: value for name, value in config.items() if name != "mode"}
        return cls(tensors["factors"], mode=config["mode"], settings=settings)


def _widths(lm: LoadedModel, places: list[Place]) -> list[int]:
    """Return the number of units of each linear map of a layer."""
    return [lm.d_mlp] * (len(places) - 1) + [lm.d_model]


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
