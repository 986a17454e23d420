"""Settings of an evaluation. The module imports no torch, so that wrong settings are rejected quickly."""

from dataclasses import replace
from typing import Any

from pydantic import model_validator

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..support.settings import Seed, option
from ..texts.settings import ChatSettings
from .evaluators.registry import DEFAULT, check_evaluator_names
from .protocols import PROTOCOLS, Protocol, get_protocol

PANEL = "How to measure"
DECODING = ("samples", "max_new_tokens", "top_p", "temperature", "repetition_penalty")


class EvaluationSettings(ChatSettings):
    """Settings of an evaluation.

    A decoding option set to None takes the protocol's value, or the default value if there is no protocol.

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
        "evaluators that judge the completions: NAME, NAME=SOURCE or NAME@THRESHOLD; repeat for several; default: the "
        "protocol's, else " + ", ".join(DEFAULT),
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
        "nucleus sampling: draw from the smallest set of tokens with at least this probability; default: the "
        "protocol's, else 0.9",
        panel=PANEL,
        gt=0,
        le=1,
    )
    temperature: float | None = option(
        None, "temperature of the sampling, 0 for greedy decoding; default: the protocol's, else 1", panel=PANEL, ge=0
    )
    repetition_penalty: float | None = option(
        None,
        "divisor of the logits of tokens that the text contains already; default: the protocol's, else 1",
        panel=PANEL,
        gt=0,
    )
    seed: Seed = option(
        0,
        "seed for the sampling and the bootstrap; the same seed, machine and version give the same completions",
        panel=PANEL,
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
        """The protocol named by the field `protocol`, or None."""
        return None if self.protocol is None else get_protocol(self.protocol)

    def decoding(self, protocol: Protocol | None = None) -> Decoding:
        """Return the decoding options under `protocol`, or under the protocol that the settings name.

        Raises:
            ToxlocError: a decoding option of the settings differs from the protocol's.
        """
        return decoding_of(protocol or self.known_protocol, **{name: getattr(self, name) for name in DECODING})


def decoding_of(protocol: Protocol | None, **options: Any) -> Decoding:
    """Return the protocol's decoding options, or the given options if there is no protocol; None keeps a default.

    Raises:
        ToxlocError: an option differs from the protocol's.

    Example:
        >>> decoding_of(None, samples=2, top_p=None)
        Decoding(samples=2, max_new_tokens=20, top_p=0.9, temperature=1.0, repetition_penalty=1.0)
    """
    given = {name: value for name, value in options.items() if value is not None}
    if protocol is None:
        return replace(Decoding(), **given)
    for name, value in given.items():
        fixed = getattr(protocol.decoding, name)
        if value != fixed:
            raise ToxlocError(f"{protocol.name} fixes {name}={fixed}; omit {name}={value} or the protocol.")
    return protocol.decoding


def usual_evaluators(protocol: Protocol | None) -> tuple[str, ...]:
    """Return the name of the protocol's evaluator, or the names of the default evaluators."""
    return (protocol.judge,) if protocol and protocol.judge else DEFAULT
