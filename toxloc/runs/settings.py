"""The settings of a run; importable without torch."""

import shlex
from typing import Annotated

from pydantic import AfterValidator

from ..evaluation.evaluators.registry import DEFAULT, check_evaluator_names
from ..interventions.registry import method_named
from ..models.settings import ModelSettings
from ..support.settings import flag_of, option
from ..texts.settings import FitTextSettings

WHAT, HOW = "What to read", "How to measure"


def _known_evaluators(names: tuple[str, ...]) -> tuple[str, ...]:
    check_evaluator_names(names)
    return names


def _known_methods(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        method_named(name)
    return names


class RunSettings(FitTextSettings, ModelSettings):
    """Everything that decides a run's numbers; written into results.json."""

    model: str = option(
        "toxloc-tiny",
        "model to load: toxloc-tiny (comes with toxloc), a Hugging Face model folder, "
        "a .gguf file, or a hub id such as org/name",
        panel=WHAT,
    )
    contrast: str = option(
        "builtin",
        "toxic and neutral texts to learn the difference from: builtin, a CSV, TSV, "
        "JSONL or Parquet file, or a hub dataset; sampled lets the model write them",
        panel=WHAT,
    )
    prompts: str = option(
        "builtin",
        "openings for the model to complete: builtin, a file (also .txt, one per line), or a hub dataset",
        panel=WHAT,
    )
    check: str | None = option(
        None,
        "other everyday text to measure the reported cost on; default: a part of the neutral text that is kept aside",
        panel=WHAT,
    )
    methods: Annotated[tuple[str, ...], AfterValidator(_known_methods)] = option(
        ("meow2x", "trne"),
        "method to fit and judge; repeat for several; toxloc methods lists them",
        panel=HOW,
        flag="method",
        min_length=1,
    )
    evaluators: Annotated[tuple[str, ...], AfterValidator(_known_evaluators)] = option(
        DEFAULT,
        "evaluator of the completions: NAME, NAME=SOURCE or NAME@THRESHOLD; repeat for several "
        "(see docs/evaluators.md)",
        panel=HOW,
        flag="evaluator",
        min_length=1,
    )
    budget: float = option(
        0.01, "relative rise of perplexity on everyday text that a method may cost: 0.01 is 1%", panel=HOW, gt=0, lt=1
    )
    meow2x_budget: float = option(0.02, "the same for Meow2X, in place of --budget", panel=HOW, gt=0, lt=1)
    samples: int = option(5, "completions per prompt", panel=HOW, ge=1)
    max_prompts: int = option(
        200, "draw at most this many prompts of each kind (provocative, everyday)", panel=HOW, ge=1
    )
    knockouts: int = option(
        32,
        "single neurons to remove in the causal test, besides every layer and a curve of "
        "growing groups; 0 for no such test",
        panel=HOW,
        ge=0,
    )
    max_new_tokens: int = option(20, "length of a completion in tokens", panel=HOW, ge=1)
    seed: int = option(
        0, "seed for every random draw; the same seed, machine and version give the same result", panel=HOW, ge=0
    )

    def budget_of(self, method: str) -> float:
        """Return the rise of perplexity that a method may cost."""
        return self.meow2x_budget if method == "meow2x" else self.budget

    def command(self) -> str:
        """Return the shell command that repeats the run.

        Example:
            >>> RunSettings(samples=2, evaluators=("profanity-check",)).command()
            'toxloc run --evaluator profanity-check --samples 2'
        """
        parts = ["toxloc", "run"]
        for name, value in self.changed().items():
            for one in value if isinstance(value, tuple) else (value,):
                parts += [f"--{flag_of(name, type(self).model_fields[name])}", str(one)]
        return shlex.join(parts)
