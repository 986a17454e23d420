"""The settings of an evaluation; importable without torch, so that wrong settings are refused at once."""

from dataclasses import replace
from typing import Any

from pydantic import model_validator

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..support.settings import Settings, option
from .evaluators.registry import DEFAULT, check_evaluator_names
from .protocols import PROTOCOLS, Protocol, get_protocol

PANEL = "How to measure"
DECODING = ("samples", "max_new_tokens", "top_p", "temperature", "repetition_penalty")


class EvaluationSettings(Settings):
    """How a model is judged. A field of the decoding that is None takes the protocol's value, else the default.

    Example:
        >>> EvaluationSettings(samples=2).decoding().max_new_tokens
        20
        >>> EvaluationSettings(protocol="ProFS").decoding().temperature
        0.0
    """

    protocol: str | None = option(
        None,
        "published protocol, which fixes prompts and decoding: " + ", ".join(PROTOCOLS) + "; default: none",
        panel=PANEL,
    )
    evaluators: tuple[str, ...] | None = option(
        None,
        "evaluators of the completions: NAME, NAME=SOURCE or NAME@THRESHOLD; repeat for several; default: the "
        "protocol's, else " + " and ".join(DEFAULT),
        panel=PANEL,
        flag="evaluator",
        min_length=1,
    )
    samples: int | None = option(None, "completions per prompt; default: the protocol's, else 5", panel=PANEL, ge=1)
    max_new_tokens: int | None = option(
        None, "length of a completion in tokens; default: the protocol's, else 20", panel=PANEL, ge=1
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: probability of the smallest set of tokens to draw from; default: the protocol's, else 0.9",
        panel=PANEL,
        gt=0,
        le=1,
    )
    temperature: float | None = option(
        None, "temperature of the sampling, 0 for greedy decoding; default: the protocol's, else 1", panel=PANEL, ge=0
    )
    repetition_penalty: float | None = option(
        None,
        "divisor for the logits of tokens that the text holds already; default: the protocol's, else 1",
        panel=PANEL,
        gt=0,
    )
    seed: int = option(
        0,
        "seed for the sampling and the bootstrap; the same seed, machine and version give the same completions",
        panel=PANEL,
        ge=0,
    )
    fluency: bool = option(True, "measure the cost in language quality", panel=PANEL)

    @model_validator(mode="after")
    def _check(self) -> "EvaluationSettings":
        self.decoding(self.known_protocol)
        if self.evaluators is not None:
            check_evaluator_names(self.evaluators)
        return self

    @property
    def known_protocol(self) -> Protocol | None:
        """The protocol that `protocol` names."""
        return None if self.protocol is None else get_protocol(self.protocol)

    def decoding(self, protocol: Protocol | None = None) -> Decoding:
        """Return how completions are sampled, under `protocol` or the one that the settings name.

        Raises:
            ToxlocError: the settings ask for a value other than the protocol's.
        """
        return decoding_of(protocol or self.known_protocol, **{name: getattr(self, name) for name in DECODING})


def decoding_of(protocol: Protocol | None, **asked: Any) -> Decoding:
    """Return the protocol's decoding, or the default one with the values in `asked`, of which None leaves the default.

    Raises:
        ToxlocError: a value other than the protocol's is asked for.

    Example:
        >>> decoding_of(None, samples=2, top_p=None)
        Decoding(samples=2, max_new_tokens=20, top_p=0.9, temperature=1.0, repetition_penalty=1.0)
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if protocol is None:
        return replace(Decoding(), **asked)
    for name, value in asked.items():
        fixed = getattr(protocol.decoding, name)
        if value != fixed:
            raise ToxlocError(f"{protocol.name} fixes {name}={fixed}; leave {name}={value} out, or the protocol.")
    return protocol.decoding


def usual_evaluators(protocol: Protocol | None) -> tuple[str, ...]:
    """Return the name of the protocol's evaluator, or the names of the two that come with toxloc."""
    return (protocol.judge,) if protocol and protocol.judge else DEFAULT
