"""Several interventions as one: applied in order, reverted in reverse."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ToxlocError
from .base import KINDS, Intervention

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.loaded import LoadedModel
    from ..models.sites import Site


class Chain(Intervention):
    """Apply interventions one after the other, and take them off in reverse.

    Args:
        parts: at least one, none of them twice; a part may be a chain.

    Raises:
        ToxlocError: no parts, or the same one twice.

    Example:
        >>> both = Chain([meow, edit])              # doctest: +SKIP
        >>> with both.applied(lm):                  # doctest: +SKIP
        ...     toxloc.evaluate(lm, prompts)
    """

    kind: ClassVar[str] = "chain"

    def __init__(self, parts: Sequence[Intervention]):
        super().__init__()
        self.parts = list(parts)
        if not self.parts or len({id(part) for part in self.parts}) < len(self.parts):
            raise ToxlocError(
                "A chain needs interventions, each of them once; got "
                + (", ".join(map(repr, self.parts)) or "none")
                + "."
            )

    def __repr__(self) -> str:
        return f"Chain({self.parts!r})"

    def leaves(self) -> list[Intervention]:
        """Return what it is made of, with chains in it taken apart."""
        return [leaf for part in self.parts for leaf in part.leaves()]

    def low_rank(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return the vectors of all parts together, by site; nothing if a part has none."""
        import torch

        several = [part.low_rank() for part in self.parts]
        if not all(several):
            return {}
        sites = sorted({site for one in several for site in one})
        return {
            site: (
                torch.cat([one[site][0] for one in several if site in one]),
                torch.cat([one[site][1] for one in several if site in one]),
            )
            for site in sites
        }

    @property
    def in_weights(self) -> bool:
        """Whether all parts are in the weights."""
        return all(part.in_weights for part in self.parts)

    def baked(self) -> Chain:
        """Return the same with every part in the weights."""
        return Chain([part.baked() for part in self.parts]).with_fit_of(self)

    def config(self) -> dict[str, Any]:
        """Return what each part is."""
        return {
            "parts": [
                {"kind": part.kind, "config": part.config(), "fitted_on": part.fitted_on, "record": part.record}
                for part in self.parts
            ]
        }

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError unless every part fits this model's shape and is not applied already."""
        for part in self.parts:
            if any(one is part for one in lm.interventions):
                raise ToxlocError(f"{part!r} is applied to {lm.name} already; revert it before the chain is applied.")
            part.check(lm)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for part in self.parts:
            part._install(lm, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{i}/{name}": tensor for i, part in enumerate(self.parts) for name, tensor in part._tensors().items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Chain:
        parts = []
        for i, saved in enumerate(config["parts"]):
            mine = {name.removeprefix(f"{i}/"): t for name, t in tensors.items() if name.startswith(f"{i}/")}
            part = KINDS[saved["kind"]]._restore(saved["config"], mine)
            part.fitted_on, part.record = saved["fitted_on"], saved["record"]
            parts.append(part)
        return cls(parts)
