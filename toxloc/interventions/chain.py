"""Several interventions as one: applied in order, reverted in reverse."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from .base import KINDS, Intervention


def parts_of(interventions: Sequence[Intervention]) -> list[Intervention]:
    """Return the interventions with chains replaced by what they are made of."""
    return [part for one in interventions
            for part in (parts_of(one.parts) if isinstance(one, Chain) else [one])]


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
            raise ToxlocError("A chain needs interventions, each of them once; got "
                              + (", ".join(map(repr, self.parts)) or "none") + ".")

    def __repr__(self) -> str:
        return f"Chain({self.parts!r})"

    @property
    def in_weights(self) -> bool:
        """Whether all parts lie in the weights."""
        return all(part.in_weights for part in self.parts)

    def baked(self) -> "Chain":
        """Return the same with every part in the weights."""
        chain = Chain([part.baked() for part in self.parts])
        chain.fitted_on, chain.record = self.fitted_on, self.record
        return chain

    def config(self) -> dict[str, Any]:
        """Return what each part is."""
        return {"parts": [{"kind": part.kind, "config": part.config(), "fitted_on": part.fitted_on,
                           "record": part.record} for part in self.parts]}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError unless every part fits this model's shape and is not in force already."""
        for part in self.parts:
            if any(one is part for one in lm.applied):
                raise ToxlocError(f"{part!r} is applied to {lm.name} already; revert it before the chain is applied.")
            part.check(lm)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for part in self.parts:
            part._install(lm, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{i}/{name}": tensor for i, part in enumerate(self.parts) for name, tensor in part._tensors().items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Chain":
        parts = []
        for i, saved in enumerate(config["parts"]):
            mine = {name.removeprefix(f"{i}/"): t for name, t in tensors.items() if name.startswith(f"{i}/")}
            part = KINDS[saved["kind"]]._restore(saved["config"], mine)
            part.fitted_on, part.record = saved["fitted_on"], saved["record"]
            parts.append(part)
        return cls(parts)
