"""Combine several interventions: apply them in order, revert them in reverse order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ToxlocError
from ..support.arguments import as_list, check_kind
from .base import KINDS, Intervention

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.loaded import LoadedModel
    from ..models.sites import Site


class Chain(Intervention):
    """Several interventions that are applied in order and reverted in reverse order.

    Args:
        parts: the interventions, at least one and each only once; a part may be a chain.

    Raises:
        ToxlocError: no parts, or the same part twice.

    Example:
        >>> both = Chain([meow, edit])              # doctest: +SKIP
        >>> with both.applied(lm):                  # doctest: +SKIP
        ...     toxloc.evaluate(lm, prompts)
    """

    kind: ClassVar[str] = "chain"

    def __init__(self, parts: Sequence[Intervention]):
        super().__init__()
        self.parts = as_list(parts, "the parts of a chain")
        for part in self.parts:
            check_kind(part, Intervention, "a part of a chain")
        if not self.parts or len({id(part) for part in self.parts}) < len(self.parts):
            raise ToxlocError(
                "A chain needs at least one intervention, and each only once; got "
                + (", ".join(map(repr, self.parts)) or "none")
                + "."
            )

    def __repr__(self) -> str:
        return f"Chain({self.parts!r})"

    def leaves(self) -> list[Intervention]:
        """Return the interventions in the chain, with nested chains flattened."""
        return [leaf for part in self.parts for leaf in part.leaves()]

    def low_rank(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return the stacked vectors of all parts by site; an empty dict if a part has none."""
        import torch

        vectors = [part.low_rank() for part in self.parts]
        if not all(vectors):
            return {}
        sites = sorted({site for by_site in vectors for site in by_site})
        return {
            site: (
                torch.cat([by_site[site][0] for by_site in vectors if site in by_site]),
                torch.cat([by_site[site][1] for by_site in vectors if site in by_site]),
            )
            for site in sites
        }

    @property
    def in_weights(self) -> bool:
        """Whether all parts edit the weights."""
        return all(part.in_weights for part in self.parts)

    def baked(self) -> Chain:
        """Return the same chain with every part in the form that edits the weights."""
        return Chain([part.baked() for part in self.parts]).with_fit_of(self)

    def config(self) -> dict[str, Any]:
        """Return the kind, the settings, the fitted model and the record of each part."""
        return {
            "parts": [
                {"kind": part.kind, "config": part.config(), "fitted_on": part.fitted_on, "record": part.record}
                for part in self.parts
            ]
        }

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a part does not fit this model's shape or is already applied."""
        for part in self.parts:
            if any(applied is part for applied in lm.interventions):
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
            part_tensors = {name.removeprefix(f"{i}/"): t for name, t in tensors.items() if name.startswith(f"{i}/")}
            part = KINDS[saved["kind"]]._restore(saved["config"], part_tensors)
            part.fitted_on, part.record = saved["fitted_on"], saved["record"]
            parts.append(part)
        return cls(parts)
