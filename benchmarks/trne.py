"""Compare the options of TRNE, one at a time, with the defaults, at equal cost, on held-out contrast texts.

    python -m benchmarks.trne                # toxloc-tiny; --out trne.json saves it
    python -m benchmarks.trne --model SmolLM2-135M-Instruct.Q4_1.gguf --contrast rtp.jsonl
        --neutral wikitext2-valid.txt --check wikitext2-test.txt --max-texts 400 --max-neutral 200

Each edit is fitted on one part of the contrast set, as strong as the budget allows on the `tune` part of the neutral
text. Its gain is the rise of NLL_T - NLL_N on the other part of the contrast set, in nats per token. No completions are
sampled and no evaluator is used, so options can be chosen by the gain without looking at the prompts that are judged.
Differences from the defaults are paired over the held-out texts, which are resampled 2,000 times. Texts that begin with
a prompt of `--leave-out` are not used.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float64, Int64
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from toxloc import (
    TRNE,
    ContrastSet,
    Evidence,
    LoadedModel,
    NeutralText,
    ToxlocError,
    load_contrast,
    load_model,
    load_neutral,
    load_prompts,
)
from toxloc.cli.output import interval
from toxloc.evaluation.cost.fluency import Fluency, Unedited
from toxloc.evaluation.cost.perplexity import nll_per_text
from toxloc.support.files import write_json
from toxloc.support.intervals import Interval, bootstrap

DEFAULTS = "defaults"


def variants(n_layers: int) -> dict[str, dict[str, Any]]:
    """Return settings of `TRNE.fit` by name of the variant; `neutral` is the share of the neutral text for C and S."""
    thirds = [range(round(i * n_layers / 3), round((i + 1) * n_layers / 3)) for i in range(3)]
    groups = dict(zip(("early", "middle", "late"), thirds, strict=True))
    return {
        DEFAULTS: {},
        **{f"ridge {ridge:g}": {"ridge": ridge} for ridge in (0.03, 0.1, 0.3, 3.0, 10.0)},
        'ridge "auto"': {"ridge": "auto"},
        "sampled Fisher": {"fisher": "sampled"},
        "shrink": {"shrink": True},
        **{f"{rounds} rounds": {"rounds": rounds} for rounds in (2, 3)},
        **{f"{share:.0%} of the neutral text in C and S": {"neutral": share} for share in (0, 0.25, 0.5)},
        **{f"{name} third alone": {"layers": list(group)} for name, group in groups.items()},
        **{
            f"{name} third × {factor:g}": {"emphasis": dict.fromkeys(group, factor)}
            for name, group in groups.items()
            for factor in (0.5, 2.0)
        },
    }


@dataclass(frozen=True)
class Gain:
    """Rise of the summed NLL of every held-out text in nats, and its number of predicted tokens."""

    toxic: Float64[np.ndarray, " n"]
    neutral: Float64[np.ndarray, " m"]
    toxic_tokens: Float64[np.ndarray, " n"]
    neutral_tokens: Float64[np.ndarray, " m"]

    @property
    def mean(self) -> float:
        """Rise of NLL_T - NLL_N, each the mean per token."""
        return float(self.toxic.sum() / self.toxic_tokens.sum() - self.neutral.sum() / self.neutral_tokens.sum())

    def interval_over(self, other: "Gain", seed: int) -> Interval:
        """Return the 95% bootstrap interval of `mean` minus another gain's `mean`, both on the same resampled texts."""
        return bootstrap(
            lambda i, j: self._resampled(i, j) - other._resampled(i, j), (len(self.toxic), len(self.neutral)), seed
        )

    def _resampled(
        self, i: Int64[np.ndarray, "draws n"], j: Int64[np.ndarray, "draws m"]
    ) -> Float64[np.ndarray, " draws"]:
        """Return `mean` for each resample: row of indices of toxic texts `i` and of neutral texts `j`."""
        mean: np.ndarray = self.toxic[i].sum(1) / self.toxic_tokens[i].sum(1) - self.neutral[j].sum(
            1
        ) / self.neutral_tokens[j].sum(1)
        return mean


class HeldOut:
    """Measures gains on contrast texts that were not used for fitting."""

    def __init__(self, lm: LoadedModel, pairs: ContrastSet):
        self.lm, self.pairs = lm, pairs
        self._before = self._read()

    def gain(self) -> Gain:
        """Measure the gain of the model in its current state."""
        after = self._read()
        toxic, neutral = (sums - before for (sums, _), (before, _) in zip(after, self._before, strict=True))
        return Gain(toxic, neutral, self._before[0][1], self._before[1][1])

    def _read(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [nll_per_text(self.lm, texts) for texts in (self.pairs.toxic, self.pairs.neutral)]


def main(
    model: Annotated[str, typer.Option(help="Model, as in load_model.")] = "toxloc-tiny",
    budget: Annotated[float, typer.Option(help="Rise of perplexity that each variant may cost.")] = 0.01,
    variant: Annotated[
        list[str] | None, typer.Option(help="Variant, by its name in the table; repeat for several.")
    ] = None,
    contrast: Annotated[str, typer.Option(help="Contrast set, as in toxloc run.")] = "builtin",
    leave_out: Annotated[
        str, typer.Option(help="Prompts reserved for judging, as --prompts of toxloc run.")
    ] = "builtin",
    max_prompts: Annotated[int, typer.Option(help="Maximum number of these prompts of each kind.", min=1)] = 400,
    neutral: Annotated[str, typer.Option(help="Neutral text, as in toxloc run.")] = "builtin",
    check: Annotated[str | None, typer.Option(help="Text to measure cost on, as in toxloc run.")] = None,
    max_texts: Annotated[
        int, typer.Option(help="Maximum number of contrast texts of each side to fit on.", min=8)
    ] = 300,
    max_held_out: Annotated[int, typer.Option(help="Maximum number of held-out texts of each side.", min=8)] = 300,
    max_neutral: Annotated[int, typer.Option(help="Maximum number of everyday texts.", min=12)] = 500,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="Device, as in load_model.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file, written after every variant.")] = None,
) -> None:
    """Fit every variant, measure its gain and cost, and print and save the results."""
    began = time.perf_counter()
    judged = load_prompts(leave_out).limited(max_prompts, seed)
    fitted_on, rest = load_contrast(contrast).without(judged.texts).split(0.5, seed)
    pairs, held_out = fitted_on.limited(max_texts, seed), rest.limited(max_held_out, seed)
    text = load_neutral(neutral, limit=max_neutral, seed=seed)
    other = load_neutral(check, limit=max_neutral, seed=seed) if check else None
    lm = load_model(model, device=device)
    known = variants(lm.n_layers)
    if unknown := set(variant or ()) - set(known):
        raise ToxlocError(f"There is no variant {', '.join(sorted(unknown))}; choose from {', '.join(known)}.")
    held, evidence = HeldOut(lm, held_out), Evidence(lm, pairs, text).expect("gradients", "curvature")
    unedited = Unedited(lm, other.texts if other else text.check)
    reference: Gain | None = None
    entries: list[dict[str, Any]] = []
    for name in (DEFAULTS, *(variant or list(known)[1:])):
        gain, cost, edit = measure(held, unedited, evidence, budget, known[name])
        reference = reference or gain
        entries.append(
            {
                "variant": name,
                "gain": gain.mean,
                "over_defaults": gain.mean - reference.mean,
                "ci": list(gain.interval_over(reference, seed)),
                "fluency": cost.to_dict(),
                "described": edit.describe(),
            }
        )
        print(f"{time.perf_counter() - began:5.0f} s  {name}: {gain.mean:.3f} nats", flush=True)
        if out is not None:
            write_json(
                out,
                {
                    "model": lm.name,
                    "budget": budget,
                    "contrast": pairs.name,
                    "n_fit": len(pairs.toxic),
                    "n_held_out": len(held_out.toxic),
                    "neutral": text.name,
                    "seed": seed,
                    "entries": entries,
                },
            )
    show(lm.name, entries)


def measure(
    held: HeldOut, unedited: Unedited, evidence: Evidence, budget: float, settings: dict[str, Any]
) -> tuple[Gain, Fluency, TRNE]:
    """Fit one variant; return its gain, its cost on unseen text, and the edit."""
    lm, pairs, text = evidence.lm, evidence.pairs, evidence.neutral
    options = {name: value for name, value in settings.items() if name != "neutral"}
    if "neutral" in settings:
        part = text.fit[: round(settings["neutral"] * len(text.fit))]
        evidence = Evidence(lm, pairs, NeutralText(part, text.tune, text.check, text.name))
    edit = TRNE.fit(lm, pairs, evidence=evidence, budget=budget, **options)
    with edit.applied(lm):
        return held.gain(), unedited.compare(), edit


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation, with one row per variant."""
    return md.table(
        ["variant", "gain, nats", "against the defaults", "perplexity", "KL"],
        [
            [
                entry["variant"],
                f"{entry['gain']:.3f}",
                "" if entry["variant"] == DEFAULTS else interval(entry["over_defaults"], entry["ci"], "+.3f"),
                f"{entry['fluency']['perplexity_ratio'] - 1:+.2%}",
                f"{entry['fluency']['kl']:.3f}",
            ]
            for entry in result["entries"]
        ],
        numbers=True,
    )


def show(name: str, entries: list[dict[str, Any]]) -> None:
    """Print one row per variant."""
    table = Table("variant", "gain, nats per token", "over the defaults", "perplexity", "KL", title=name)
    for entry in entries:
        table.add_row(
            entry["variant"],
            f"{entry['gain']:.3f}",
            "" if entry["variant"] == DEFAULTS else interval(entry["over_defaults"], entry["ci"], "+.3f"),
            f"{entry['fluency']['perplexity_ratio'] - 1:+.2%}",
            f"{entry['fluency']['kl']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
