"""What a loaded model knows of interventions and of models that users made."""

from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class AppliedIntervention(Protocol):
    """Interface of an intervention that is applied to a model."""

    kind: ClassVar[str]

    @property
    def in_weights(self) -> bool:
        """Whether the whole edit is in the weights."""

    @property
    def fingerprint(self) -> str:
        """Hash of the edit."""

    def describe(self) -> dict[str, Any]:
        """Describe it as a dictionary."""

    def apply(self, lm: Any) -> None:
        """Apply it to a model."""

    def revert(self, lm: Any) -> None:
        """Remove it from a model."""


@runtime_checkable
class HookedTransformerLike(Protocol):
    """A HookedTransformer of transformer-lens 3.9, which `LoadedModel.of` wraps."""

    cfg: Any
    blocks: Any
    tokenizer: Any
