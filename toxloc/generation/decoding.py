"""How completions are sampled."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decoding:
    """How completions are sampled; the fields are what `generate` takes.

    Attributes:
        samples: completions per prompt.
        max_new_tokens: length of a completion.
        top_p: nucleus; 1 for plain sampling.
        temperature: 0 for greedy decoding.
        repetition_penalty: 1 for none.
    """

    samples: int = 5
    max_new_tokens: int = 20
    top_p: float = 0.9
    temperature: float = 1.0
    repetition_penalty: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
