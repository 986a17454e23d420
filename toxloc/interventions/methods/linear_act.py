"""Linear-AcT: map the MLPs' outputs on toxic text to their outputs on neutral text, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ToxlocError
from ...support.settings import option
from ..base import Intervention
from ..settings import StrengthSettings

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from ...models.loaded import LoadedModel
    from ...texts.contrast import ContrastSet
    from ..evidence import Evidence


class LinearAcTSettings(StrengthSettings):
    """Settings of Linear-AcT; the strength is the paper's lambda, and 1 applies the full map."""

    strength: float | None = option(None, "fixed strength, at most 1; if given, the budget is not used", gt=0, le=1)
    sequential: bool = option(
        True,
        "fit each layer on the toxic texts with the maps of the earlier layers applied at strength 1, in one pass over "
        "the toxic texts per layer; if false, fit all layers on the unedited model. The target is always the neutral "
        "texts in the unedited model",
    )


@dataclass(frozen=True)
class Transport:
    """The affine maps a -> omega a + beta of the units of one layer, applied where low <= a <= high."""

    omega: Float[Tensor, " d_model"]
    beta: Float[Tensor, " d_model"]
    low: Float[Tensor, " d_model"]
    high: Float[Tensor, " d_model"]

    @classmethod
    def between(cls, source: Float[Tensor, "n d_model"], target: Float[Tensor, "m d_model"]) -> Transport:
        """Fit the maps by least squares on the sorted values of source and target; [low, high] is the source's range.

        Pairing sorted values is the optimal transport between one-dimensional samples. If the sample sizes differ, the
        target's quantiles at the ranks of the source replace its sorted values. A unit whose source values are all
        equal is shifted: its omega is 1.
        """
        import numpy as np
        import torch

        x = np.sort(source.double().numpy(), axis=0)
        y = np.quantile(target.double().numpy(), np.linspace(0, 1, len(x)), axis=0)
        dx, dy = x - x.mean(0), y - y.mean(0)
        varies = x[-1] > x[0]
        omega = np.divide((dx * dy).sum(0), (dx**2).sum(0), out=np.ones(x.shape[1]), where=varies)
        beta = y.mean(0) - omega * x.mean(0)
        return cls(*(torch.from_numpy(part).float() for part in (omega, beta, x[0], x[-1])))

    def to(self, device: torch.device) -> Transport:
        """Return the same maps on a device."""
        return Transport(*(getattr(self, field.name).to(device) for field in fields(self)))

    def moved(self, a: Float[Tensor, "*tokens d_model"], strength: float = 1.0) -> Float[Tensor, "*tokens d_model"]:
        """Return (1 - strength) a + strength (omega a + beta) where a is within [low, high], and a elsewhere."""
        import torch

        inside = (self.low <= a) & (a <= self.high)
        return torch.where(inside, torch.lerp(a, self.omega * a + self.beta, strength), a)


class LinearAcT(Intervention):
    """Map what each MLP adds to the residual stream, unit by unit, from its values on toxic text to those on neutral.

    The value a of a unit becomes (1 - strength) a + strength (omega a + beta). omega and beta are the least-squares fit
    of the sorted neutral values to the sorted toxic values; each value is the mean over a text's real tokens except the
    first. Outside the range of the toxic values, where nothing was observed, a is not changed.

    `LinearAcT.fit` computes the maps from texts; the constructor takes given maps.

    Args:
        maps: the maps, one `Transport` per layer.
        strength: over 0 (no change) and at most 1 (the full map); the paper's lambda.

    Raises:
        ToxlocError: no maps, or a strength outside (0, 1].

    Source: Linear-AcT (Rodriguez et al. 2024, arXiv:2410.23054).

    Example:
        >>> act = LinearAcT.fit(lm, toxloc.load_contrast())     # doctest: +SKIP
        >>> with act.applied(lm): ...                           # doctest: +SKIP
    """

    kind: ClassVar[str] = "linear-act"
    title: ClassVar[str] = "Linear-AcT"
    paper: ClassVar[str] = "Linear-AcT, Rodriguez et al. 2024, arXiv:2410.23054"
    Settings = LinearAcTSettings

    def __init__(self, maps: Sequence[Transport], strength: float = 1.0):
        super().__init__()
        if not maps:
            raise ToxlocError("LinearAcT needs a map for each layer; none was given.")
        if not 0 < strength <= 1:
            raise ToxlocError(f"The strength must be over 0 (no change) and at most 1 (the full map), not {strength}.")
        self.maps, self.strength = list(maps), float(strength)

    def __repr__(self) -> str:
        return f"LinearAcT({len(self.maps)} layers, strength={self.strength:g})"

    @classmethod
    def _fit(cls, evidence: Evidence, settings: LinearAcTSettings) -> LinearAcT:
        pairs = evidence.pairs
        for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral)):
            if len(texts) < 2:
                raise ToxlocError(
                    f"Linear-AcT needs at least two texts on each side; the contrast set "
                    f"{pairs.name!r} has {len(texts)} {side} text."
                )
        maps = evidence.remember(
            ("linear-act", settings.sequential), lambda: _fit_maps(evidence.lm, pairs, settings.sequential)
        )
        act = evidence.at_strength(partial(cls, maps), settings, first=1.0, limit=1.0)
        act.note_fit(evidence.lm, {"sequential": settings.sequential, "strength": act.strength})
        return act

    def config(self) -> dict[str, Any]:
        """Return the strength; the maps are in the tensors."""
        return {"strength": self.strength}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the model has a different number of layers or a different d_model."""
        for transport in self.maps:
            if (len(self.maps), len(transport.omega)) != (lm.n_layers, lm.d_model):
                raise ToxlocError(
                    f"This LinearAcT is for {len(self.maps)} layers of d_model={len(transport.omega)}; "
                    f"{lm.name} has {lm.n_layers} of d_model={lm.d_model}. Fit it on this model."
                )

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.activations import change, feed_forward_output

        for layer, transport in enumerate(self.maps):
            moved = partial(transport.to(lm.device_of(layer)).moved, strength=self.strength)
            change(lm, feed_forward_output(lm, layer), moved, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{name}": part
            for layer, transport in enumerate(self.maps)
            for name, part in asdict(transport).items()
        }

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> LinearAcT:
        names = [field.name for field in fields(Transport)]
        maps = [
            Transport(*(tensors[f"{layer}.{name}"] for name in names)) for layer in range(len(tensors) // len(names))
        ]
        return cls(maps, config["strength"] if "strength" in config else config["lam"])  # version 0.1 wrote lam


def _fit_maps(lm: LoadedModel, pairs: ContrastSet, sequential: bool) -> list[Transport]:
    from ...models.activations import change, feed_forward_output, pooled

    places = [feed_forward_output(lm, layer) for layer in range(lm.n_layers)]
    targets = pooled(lm, pairs.neutral, places, describe="neutral texts")
    if not sequential:
        sources = pooled(lm, pairs.toxic, places, describe="toxic texts")
        return [Transport.between(source, target) for source, target in zip(sources, targets, strict=True)]
    maps: list[Transport] = []
    with ExitStack() as stack:
        for layer, (place, target) in enumerate(zip(places, targets, strict=True)):
            (source,) = pooled(lm, pairs.toxic, [place], describe=f"toxic texts, layer {layer + 1} of {lm.n_layers}")
            maps.append(Transport.between(source, target))
            change(lm, place, maps[-1].to(lm.device_of(layer)).moved, stack)
    return maps
