"""Linear-AcT: carry what the MLPs write on toxic text over to what they write on neutral text, unit by unit."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ToxlocError
from ...models.activations import change, mlp_write, pooled
from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import Intervention
from ..budget import Budget
from ..tuning import tune


@dataclass(frozen=True)
class Transport:
    """The affine map a -> omega a + beta of every unit of one layer, in force where low <= a <= high."""

    omega: Float[Tensor, " d_model"]
    beta: Float[Tensor, " d_model"]
    low: Float[Tensor, " d_model"]
    high: Float[Tensor, " d_model"]

    @classmethod
    def between(cls, source: Float[Tensor, "n d_model"], target: Float[Tensor, "m d_model"]) -> "Transport":
        """Fit it by least squares on the sorted values of source and target, [low, high] being the source's range.

        Sorting is the optimal transport between samples of one number. The target's values are its quantiles at the
        ranks of the source's, which are just its sorted values where there are as many. A unit whose source never
        varies is shifted.
        """
        x = np.sort(source.double().numpy(), axis=0)
        y = np.quantile(target.double().numpy(), np.linspace(0, 1, len(x)), axis=0)
        dx, dy = x - x.mean(0), y - y.mean(0)
        varies = x[-1] > x[0]
        omega = np.divide((dx * dy).sum(0), (dx**2).sum(0), out=np.ones(x.shape[1]), where=varies)
        beta = y.mean(0) - omega * x.mean(0)
        return cls(*(torch.from_numpy(part).float() for part in (omega, beta, x[0], x[-1])))

    def to(self, device: torch.device) -> "Transport":
        """Return the same on a device."""
        return Transport(*(getattr(self, field.name).to(device) for field in fields(self)))

    def moved(self, a: Float[Tensor, "*tokens d_model"], lam: float = 1.0) -> Float[Tensor, "*tokens d_model"]:
        """Return (1 - lam) a + lam (omega a + beta) where a is within [low, high], elsewhere a."""
        inside = (self.low <= a) & (a <= self.high)
        return torch.where(inside, torch.lerp(a, self.omega * a + self.beta, lam), a)


class LinearAcT(Intervention):
    """Move what each MLP adds to the residual stream, unit by unit, from its values on toxic to those on neutral text.

    A unit's value a becomes (1 - lam) a + lam (omega a + beta). omega and beta are the least-squares fit on the sorted
    toxic against the sorted neutral values, a value being the mean over a text's tokens. Outside the range of the toxic
    values nothing was observed, and a is left alone.

    Make one with `LinearAcT.fit`; the constructor takes ready maps.

    Args:
        maps: one for each layer.
        lam: strength, over 0 (nothing) up to 1 (the whole way).

    Raises:
        ToxlocError: no maps, or lam out of range.

    Source: Linear-AcT (Rodriguez et al. 2024, arXiv:2410.23054).

    Example:
        >>> act = LinearAcT.fit(lm, toxloc.load_contrast())     # doctest: +SKIP
        >>> with act.applied(lm): ...                           # doctest: +SKIP
    """

    kind: ClassVar[str] = "linear-act"

    def __init__(self, maps: Sequence[Transport], lam: float = 1.0):
        super().__init__()
        if not maps:
            raise ToxlocError("LinearAcT needs a map for each layer; none was given.")
        if not 0 < lam <= 1:
            raise ToxlocError(f"lam says how far to go, over 0 up to 1 (the whole way), not {lam}.")
        self.maps, self.lam = list(maps), float(lam)

    def __repr__(self) -> str:
        return f"LinearAcT({len(self.maps)} layers, lam={self.lam:g})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, budget: float | Budget | None = 0.01, sequential: bool = True,
            neutral: NeutralText | None = None, maps: Sequence[Transport] | None = None) -> "LinearAcT":
        """Fit the maps, then set lam.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the contrast set, at least two texts a side.
            budget: lam is the largest up to 1 that costs no more than this on `neutral.tune`; a number is the relative
                rise of perplexity. None for lam = 1, whatever that costs.
            sequential: fit a layer to the toxic texts as the maps of the layers before it, at lam = 1, leave them; this
                takes a pass over them per layer. Otherwise all layers see the unedited model. The target is always the
                neutral texts in the unedited model.
            neutral: everyday text; by default the built-in one.
            maps: ready maps of an earlier fit, of which only the strength is to be set.

        Raises:
            ToxlocError: fewer than two texts on a side, a budget that is not positive, no lam within the budget.
        """
        limits = None if budget is None else Budget.of(budget)
        for side, texts in (("toxic", pairs.toxic), ("neutral", pairs.neutral)):
            if len(texts) < 2:
                raise ToxlocError(f"A transport needs at least two texts on each side; the contrast set "
                                  f"{pairs.name!r} has {len(texts)} {side} one.")
        if maps is None:
            maps = _fit_maps(lm, pairs, sequential)
        act = cls(maps) if limits is None else tune(lm, partial(cls, maps), limits, neutral, first=1.0, limit=1.0)
        act.note_fit(lm, {"sequential": sequential}, pairs)
        return act

    def config(self) -> dict[str, Any]:
        """Return the strength; the maps are in the tensors."""
        return {"lam": self.lam}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the model has another number of layers or another width."""
        for one in self.maps:
            if (len(self.maps), len(one.omega)) != (lm.n_layers, lm.d_model):
                raise ToxlocError(f"This LinearAcT is for {len(self.maps)} layers of d_model={len(one.omega)}; "
                                  f"{lm.name} has {lm.n_layers} of d_model={lm.d_model}. Fit it on this model.")

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for layer, one in enumerate(self.maps):
            change(lm, mlp_write(lm, layer), partial(one.to(lm.device_of(layer)).moved, lam=self.lam), stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{layer}.{name}": part for layer, one in enumerate(self.maps) for name, part in asdict(one).items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "LinearAcT":
        names = [field.name for field in fields(Transport)]
        maps = [Transport(*(tensors[f"{layer}.{name}"] for name in names))
                for layer in range(len(tensors) // len(names))]
        return cls(maps, config["lam"])


def _fit_maps(lm: LoadedModel, pairs: ContrastSet, sequential: bool) -> list[Transport]:
    sites = [mlp_write(lm, layer) for layer in range(lm.n_layers)]
    targets = pooled(lm, pairs.neutral, sites, describe="neutral texts")
    if not sequential:
        sources = pooled(lm, pairs.toxic, sites, describe="toxic texts")
        return [Transport.between(source, target) for source, target in zip(sources, targets, strict=True)]
    maps: list[Transport] = []
    with ExitStack() as stack:
        for layer, (site, target) in enumerate(zip(sites, targets, strict=True)):
            source, = pooled(lm, pairs.toxic, [site], describe=f"toxic texts, layer {layer + 1} of {lm.n_layers}")
            maps.append(Transport.between(source, target))
            change(lm, site, maps[-1].to(lm.device_of(layer)).moved, stack)
    return maps
