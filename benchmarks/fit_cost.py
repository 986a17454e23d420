"""Measure the cost of a whole fit, as `toxloc suppress` does it, in plain forward passes over the same tokens.

    python -m benchmarks.fit_cost                                 # toxloc-tiny; --out fit-cost.json saves it
    python -m benchmarks.fit_cost --model smollm2-135m --max-texts 60 --max-neutral 120
    python -m benchmarks.fit_cost --before other.json             # shows the result of another version beside it

A fit gathers statistics, tunes the strength on the `tune` part of the everyday text, and measures the cost on its
`check` part. Every batch that the model reads is counted. The unit of time is a plain forward pass of the Hugging Face
model, whose logits are dropped, over every batch that the fit reads, once each. It is timed in the same round as the
fit.

* evaluations: strengths whose cost was measured on the `tune` part, over all searches of the fit.
* budget spent: cost on the `tune` part, as a share of the budget.
* forward, backward: tokens that passed forward and backward through the blocks, as multiples of the tokens that the fit
  reads. The pass that gathers gradients counts as one of each.
* × plain: seconds of the fit as multiples of the unit: median over the rounds.
* statistics, tuning, check: share of the seconds; the rest is linear algebra, such as that of TRNE's closed form.

Loading the model and saving the edit are not measured. Every method is fitted once before its first round. On a CPU,
seconds are those of the processor, which other programs disturb less.
"""

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import markdown as md
from benchmarks.speed import Setting, describe, quartiles
from toxloc import Budget, ContrastSet, Evidence, LoadedModel, NeutralText, ToxlocError, load_contrast, load_neutral
from toxloc.evaluation.cost.fluency import Unedited
from toxloc.interventions import evidence as evidence_module
from toxloc.interventions import fitting
from toxloc.interventions.base import Intervention
from toxloc.interventions.registry import method_settings
from toxloc.support.files import write_json

FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRNE": ("trne", {}),
    'TRNE, ridge "auto"': ("trne", {"ridge": "auto"}),
    "TRNE, 2 rounds": ("trne", {"rounds": 2}),
    "TRNE, frobenius": ("trne", {"metric": "frobenius"}),
    "Meow2X": ("meow2x", {}),
    "Meow2X, graded": ("meow2x", {"scale": "graded"}),
    'Meow2X, scale "auto"': ("meow2x", {"scale": "auto"}),
    "Meow2X, layers": ("meow2x", {"parts": "layers"}),
    "AurA": ("aura", {}),
    "Damp": ("damp", {"scale": 0.5}),
    "Det0": ("damp", {}),
    "Linear-AcT": ("linear-act", {}),
    "ProFS": ("profs", {}),
    "steering": ("steering", {}),
    "directional ablation": ("ablation", {}),
    "value vector": ("value-vector", {}),
}
PHASES = ("statistics", "tuning", "check")


@dataclass
class Reading:
    """What the model read during a fit, and how long each phase took.

    Attributes:
        batches: the batches, each once, by their token ids.
        forward: tokens that passed forward, by phase.
        backward: tokens that passed backward, by phase.
        seconds: seconds by phase.
        evaluations: strengths whose cost was measured.
    """

    batches: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict)
    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    evaluations: int = 0
    phase: str = "statistics"

    @property
    def tokens(self) -> int:
        """Number of tokens that the fit reads, each counted once."""
        return sum(int(mask.sum()) for _, mask in self.batches.values())


def clock(lm: LoadedModel) -> float:
    """Return the time in seconds: that of the processor if the model is on a CPU."""
    return time.process_time() if lm.device.type == "cpu" else time.perf_counter()


@contextmanager
def recorded(lm: LoadedModel) -> Iterator[Reading]:
    """Record what the model reads during a block."""
    reading = Reading()
    forward_hidden, compare = LoadedModel.forward_hidden, Unedited.compare

    def read(model: LoadedModel, ids: Tensor, mask: Tensor) -> Tensor:
        reading.batches[ids.cpu().numpy().tobytes()] = ids, mask
        reading.forward[reading.phase] += int(mask.sum())
        if torch.is_grad_enabled():
            reading.backward[reading.phase] += int(mask.sum())
        return forward_hidden(model, ids, mask)

    def evaluate(*args: Any, **options: Any) -> Any:
        reading.evaluations += 1
        return compare(*args, **options)

    def during(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            outer, reading.phase, began = reading.phase, phase, clock(lm)
            try:
                return function(*args, **options)
            finally:
                reading.seconds[phase] += clock(lm) - began
                reading.phase = outer

        return timed

    parts = [
        ("statistics", evidence_module, ("collect_contrast", "unit_aurocs", "residual_sides")),
        ("tuning", evidence_module, ("snapshots", "tune")),
        ("check", fitting, ("measure_fluency",)),
    ]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(LoadedModel, "forward_hidden", read))
        stack.enter_context(mock.patch.object(Unedited, "compare", evaluate))
        for phase, module, names in parts:
            for name in names:
                stack.enter_context(mock.patch.object(module, name, during(phase, getattr(module, name))))
        yield reading


@torch.inference_mode()
def plain(lm: LoadedModel, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Compute the logits of every batch and drop them."""
    for ids, mask in batches:
        lm.hf(input_ids=ids, attention_mask=mask, use_cache=False)


@dataclass(frozen=True)
class Texts:
    """The texts of a fit."""

    pairs: ContrastSet
    neutral: NeutralText


def fitted(lm: LoadedModel, texts: Texts, name: str, budget: Budget) -> Intervention:
    """Fit a method and measure its cost, as `toxloc suppress` does."""
    method, options = FITS[name]
    settings = method_settings(method, budget=budget, **options)
    return fitting.fit_method(method, Evidence(lm, texts.pairs, texts.neutral), settings)


def measured(lm: LoadedModel, texts: Texts, name: str, budget: Budget, repeats: int) -> dict[str, Any]:
    """Fit a method several times, each time beside a plain pass over what it reads."""
    with recorded(lm) as reading:
        edit = fitted(lm, texts, name, budget)
    batches, seconds, plains = list(reading.batches.values()), [], []
    phases = dict.fromkeys(PHASES, 0.0)
    for _ in range(repeats):
        gc.collect()
        began = clock(lm)
        plain(lm, batches)
        plains.append(clock(lm) - began)
        gc.collect()
        began = clock(lm)
        with recorded(lm) as again:
            fitted(lm, texts, name, budget)
        seconds.append(clock(lm) - began)
        phases = {phase: phases[phase] + again.seconds[phase] for phase in PHASES}
    tuned = SimpleNamespace(perplexity_ratio=edit.record["tuned_perplexity_ratio"], kl=edit.record["tuned_kl"])
    return {
        "name": name,
        "evaluations": reading.evaluations,
        "spent": budget.share(tuned),
        "tokens": reading.tokens,
        "forward": {phase: reading.forward[phase] / reading.tokens for phase in PHASES},
        "backward": reading.backward["statistics"] / reading.tokens,
        "of_plain": quartiles([fit / unit for fit, unit in zip(seconds, plains, strict=True)]),
        "shares": {phase: phases[phase] / sum(seconds) for phase in PHASES},
        "seconds": seconds,
        "plain_seconds": plains,
    }


def main(
    model: Annotated[str, typer.Option(help="Model, as in load_model.")] = "toxloc-tiny",
    budget: Annotated[float, typer.Option(help="Rise of perplexity that each fit may cost.")] = 0.01,
    kl: Annotated[bool, typer.Option(help="Whether the budget limits the KL, in nats per token, instead.")] = False,
    method: Annotated[
        list[str] | None, typer.Option(help="Method, by its name in the table; repeat for several.")
    ] = None,
    max_texts: Annotated[int, typer.Option(help="Maximum number of contrast texts of each side.", min=8)] = 300,
    max_neutral: Annotated[int, typer.Option(help="Maximum number of everyday texts.", min=12)] = 300,
    repeats: Annotated[int, typer.Option(help="Number of rounds to count.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Seed for the draw of texts.", min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="Device, as in load_model.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Saved result of another version, to show beside.", exists=True)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file, written after every method.", dir_okay=False)] = None,
) -> None:
    """Fit every method, count what the model reads, and print and save the results."""
    if unknown := set(method or ()) - set(FITS):
        raise ToxlocError(f"There is no method {', '.join(sorted(unknown))}; choose from {', '.join(FITS)}.")
    setting = Setting(model, device, seed=seed)
    lm = setting.load()
    limit = Budget(kl=budget) if kl else Budget(perplexity=budget)
    texts = Texts(
        load_contrast("builtin").limited(max_texts, seed), load_neutral("builtin", limit=max_neutral, seed=seed)
    )
    earlier = json.loads(before.read_text(encoding="utf-8")) if before else None
    result: dict[str, Any] = describe(lm, setting) | {
        "budget": limit.to_dict(),
        "n_texts": len(texts.pairs.toxic),
        "n_neutral": len(texts.neutral.texts),
        "repeats": repeats,
        "before": earlier and {"toxloc": earlier["toxloc"], "entries": earlier["entries"]},
        "entries": [],
    }
    for name in method or FITS:
        entry = measured(lm, texts, name, limit, repeats)
        result["entries"].append(entry)
        typer.echo(f"  {name}: {entry['evaluations']} evaluations, {entry['of_plain']['median']:.1f} × plain", err=True)
        if out is not None:
            write_json(out, result)
    show(result)


def rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table; with `before`, cells that hold two values, before → after."""
    known = {entry["name"]: entry for entry in (result["before"] or {"entries": []})["entries"]}
    columns: dict[str, Callable[[Any], str]] = {
        "evaluations": lambda entry: str(entry["evaluations"]),
        "budget spent": lambda entry: f"{entry['spent']:.0%}",
        "forward": lambda entry: f"{sum(entry['forward'].values()):.2f}",
        "backward": lambda entry: f"{entry['backward']:.2f}",
        "× plain": lambda entry: f"{entry['of_plain']['median']:.2f}",
    }
    body = []
    for entry in result["entries"]:
        versions = [known[entry["name"]], entry] if entry["name"] in known else [entry]
        cells = [" → ".join(dict.fromkeys(map(cell, versions))) for cell in columns.values()]
        body.append([entry["name"], *cells, *(f"{entry['shares'][phase]:.0%}" for phase in PHASES)])
    return ["method", *columns, *PHASES], body


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table for the documentation, with one row per method."""
    head, body = rows(result)
    return md.table(head, body, numbers=True)


def show(result: Mapping[str, Any]) -> None:
    """Print one row per method."""
    head, body = rows(result)
    table = Table(title=f"{result['model']}, budget {result['budget']}, {result['threads']} thread(s)")
    for nth, column in enumerate(head):
        table.add_column(column, justify="right" if nth else "left")
    for row in body:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
