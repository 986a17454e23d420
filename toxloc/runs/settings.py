"""The settings of a run; importable without torch."""

import shlex
from typing import Annotated

from pydantic import AfterValidator

from ..evaluation.evaluators.registry import DEFAULT, check_evaluator_names
from ..interventions.registry import method_named
from ..models.settings import ModelSettings
from ..support.settings import Seed, flag_of, option
from ..texts.settings import FitTextSettings

INPUTS, MEASUREMENT = "What to read", "How to measure"


def _known_evaluators(names: tuple[str, ...]) -> tuple[str, ...]:
    check_evaluator_names(names)
    return names


def _known_methods(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        method_named(name)
    return names


class RunSettings(FitTextSettings, ModelSettings):
    """All settings that affect the numbers of a run; they are written to results.json."""

    model: str = option(
        "toxloc-tiny",
        "model to load: toxloc-tiny (comes with toxloc), a Hugging Face model folder, "
        "a .gguf file, or a hub id such as org/name",
        panel=INPUTS,
    )
    contrast: str = option(
        "builtin",
        "toxic and neutral texts for the localization and the fits: builtin, a CSV, TSV, JSONL or Parquet file, or a "
        "hub dataset; sampled: sample them from the model",
        panel=INPUTS,
    )
    prompts: str = option(
        "builtin",
        "openings for the model to complete: builtin, a file (a .txt file has one opening per line), or a hub dataset",
        panel=INPUTS,
    )
    check: str | None = option(
        None,
        "other everyday text on which the reported cost is measured; default: a held-out part of the neutral text",
        panel=INPUTS,
    )
    methods: Annotated[tuple[str, ...], AfterValidator(_known_methods)] = option(
        ("meow2x", "trne"),
        "method to fit and judge; repeat the option for several methods; toxloc methods lists all methods",
        panel=MEASUREMENT,
        flag="method",
        min_length=1,
    )
    evaluators: Annotated[tuple[str, ...], AfterValidator(_known_evaluators)] = option(
        DEFAULT,
        "evaluator of the completions: NAME, NAME=SOURCE or NAME@THRESHOLD; repeat the option for several evaluators "
        "(see docs/evaluators.md)",
        panel=MEASUREMENT,
        flag="evaluator",
        min_length=1,
    )
    budget: float = option(
        0.01,
        "largest relative rise of perplexity on everyday text that a method may cause: 0.01 is 1%",
        panel=MEASUREMENT,
        gt=0,
        lt=1,
    )
    meow2x_budget: float = option(0.02, "budget of Meow2X, used in place of --budget", panel=MEASUREMENT, gt=0, lt=1)
    samples: int = option(5, "completions per prompt", panel=MEASUREMENT, ge=1)
    max_prompts: int = option(
        200, "draw at most this many prompts of each kind (provocative, everyday)", panel=MEASUREMENT, ge=1
    )
    knockouts: int = option(
        32,
        "number of single neurons that the causal test removes, in addition to every MLP and attention and to growing "
        "groups of neurons; 0 to skip the causal test",
        panel=MEASUREMENT,
        ge=0,
    )
    max_new_tokens: int = option(20, "length of a completion in tokens", panel=MEASUREMENT, ge=1)
    seed: Seed = option(
        0, "seed for every random draw; the same seed, machine and version give the same result", panel=MEASUREMENT
    )

    def budget_of(self, method: str) -> float:
        """Return the relative rise of perplexity that a method may cause."""
        return self.meow2x_budget if method == "meow2x" else self.budget

    def command(self) -> str:
        """Return the shell command that repeats the run.

        Example:
            >>> RunSettings(samples=2, evaluators=("profanity-check",)).command()
            'toxloc run --evaluator profanity-check --samples 2'
        """
        parts = ["toxloc", "run"]
        for name, value in self.changed().items():
            for item in value if isinstance(value, tuple) else (value,):
                parts += [f"--{flag_of(name, type(self).model_fields[name])}", str(item)]
        return shlex.join(parts)
