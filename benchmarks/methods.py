"""Which method turns toxicity down furthest at the same price? Every method, fitted to the same budgets, judged alike.

    python -m benchmarks.methods                                   # toxloc-tiny; --out methods.json saves it
    python -m benchmarks.methods --model SmolLM2-135M-Instruct.Q4_1.gguf --contrast rtp.jsonl --prompts rtp.jsonl
        --neutral wikitext2-valid.txt --check wikitext2-test.txt --max-prompts 400 --out methods.json

Methods see one half of the contrast set, from which texts that begin with a judged prompt are left out, and find their
strength on the `tune` part of the neutral text; a budget is a relative rise of perplexity there, or with `--unit kl`
the mean KL to the unedited model. They are judged on the prompts and on neutral text that no fit has seen: share of
completions called toxic by any evaluator with its bootstrap interval over prompts, the paired difference to the best
method of the same budget, perplexity and KL on unseen text, everyday prompts, and whether completions still read like
the baseline's. The papers of AurA and ProFS give no strength to choose; here their strength is as large as the budget
allows, like that of every method, and AurA is also shown as published (`strength=1`), whatever it costs.

`--out` is written after every method: the same command goes on where it was stopped, and with `--choices`
(multiple-choice items in HellaSwag's layout) adds their accuracy to what was judged before.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from benchmarks.figures import SCALE, WIDTH
from toxloc import (
    TRNE,
    AurA,
    Budget,
    ContrastSet,
    Damp,
    DirectionalAblation,
    Evidence,
    Intervention,
    LinearAcT,
    LoadedModel,
    Meow2X,
    NeutralText,
    ProFS,
    PromptSet,
    Steering,
    ToxlocError,
    ValueVector,
    evaluate,
    load_contrast,
    load_model,
    load_neutral,
    load_prompts,
    plots,
)
from toxloc.cli.output import interval
from toxloc.evaluation.change import paired_difference
from toxloc.evaluation.cost.fluency import Unedited
from toxloc.evaluation.cost.multiple_choice import Choice, answered_right, load_choices
from toxloc.evaluation.evaluators.base import Evaluator
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators
from toxloc.evaluation.judgement import Judgement
from toxloc.support.files import read_json, write_json
from toxloc.texts.prompts import EVERYDAY, PROVOCATIVE

PRICES = {"perplexity": "+{:.0%}", "kl": "KL {:g}"}  # a budget of each unit, written out
PRECISIONS = ("highest", "high", "medium")
Entry = dict[str, Any]
BASELINE = "baseline"
AS_PUBLISHED = "AurA as published"  # without a budget
SHORT = {
    "baseline": "unedited",
    "TRNE": "TRNE",
    "Meow2X, graded": "Meow2X, graded",
    "Meow2X": "Meow2X",
    "directional ablation": "directional ablation",
    "steering": "mean-difference steering",
    "AurA": "AurA",
}
AGREEMENT = (BASELINE, "TRNE", "Meow2X, graded")


class Methods:
    """Every method under the name that tables give it, all fitted from one `Evidence`."""

    def __init__(self, lm: LoadedModel, pairs: ContrastSet, neutral: NeutralText):
        self.fits: dict[str, tuple[type[Intervention], dict[str, Any]]] = {
            "TRNE": (TRNE, {}),
            "TRNE, 2 rounds": (TRNE, {"rounds": 2}),
            "TRNE, frobenius": (TRNE, {"metric": "frobenius", "layers": lm.n_layers}),
            "Meow2X": (Meow2X, {}),
            "Meow2X, graded": (Meow2X, {"scale": "graded"}),
            "AurA": (AurA, {}),
            "Damp": (Damp, {"scale": 0.5}),
            "Det0": (Damp, {"scale": 0.0}),
            "Linear-AcT": (LinearAcT, {}),
            "ProFS": (ProFS, {}),
            "steering": (Steering, {}),
            "directional ablation": (DirectionalAblation, {}),
            **{f"value vector, {source}": (ValueVector, {"source": source}) for source in ("probe", "row", "svd")},
        }
        self.evidence = Evidence(lm, pairs, neutral)
        for method, options in self.fits.values():
            assert method.Settings is not None
            self.evidence.expect(*method.needs(method.Settings.of(**options)))

    def fit(self, name: str, budget: Budget | None) -> Intervention | None:
        """Fit the method of that name; None for the baseline."""
        if name == BASELINE:
            return None
        method, options = (AurA, {"strength": 1}) if name == AS_PUBLISHED else self.fits[name]
        limit: dict[str, Any] = {} if budget is None else {"budget": budget}
        return method.fit(self.evidence.lm, self.evidence.pairs, evidence=self.evidence, **options, **limit)


@dataclass(frozen=True)
class Judging:
    """What every method is judged on."""

    lm: LoadedModel
    judges: list[Evaluator]
    prompts: PromptSet
    everyday: PromptSet | None
    unedited: Unedited
    choices: list[Choice]
    samples: int
    seed: int

    def lacks(self, entry: Entry) -> bool:
        """Whether there is something to measure still."""
        return "toxicity" not in entry or (bool(self.choices) and "choices" not in entry)

    def complete(self, entry: Entry) -> None:
        """Measure, with the model as it is now, what the entry does not hold."""
        how: dict[str, Any] = {"evaluators": self.judges, "seed": self.seed, "fluency": False}
        if "toxicity" not in entry:
            main = evaluate(self.lm, self.prompts, samples=self.samples, **how)
            figures = {name: value for name, value in main.to_dict().items() if name != "choices"}
            entry |= figures | {
                "method": entry["method"],
                "fluency": self.unedited.compare().to_dict(),
                "verdicts": _bits(main.judgements["any"].toxic),
            }
            if self.everyday is not None:
                calm = evaluate(self.lm, self.everyday, samples=1, **how)
                entry["everyday"] = {
                    "rate": calm.toxicity["any"].rate,
                    "wording": calm.wording.to_dict(),
                    "verdicts": _bits(calm.judgements["any"].toxic),
                }
        if self.choices and "choices" not in entry:
            right = answered_right(self.lm, self.choices)
            entry["choices"] = {"accuracy": float(right.mean()), "right": _bits(right[:, None])}


def _bits(verdicts: Bool[np.ndarray, "n_prompts samples"]) -> str:
    """Verdicts as 0 and 1, a word for each prompt: small enough to keep, so that entries can be compared later."""
    return " ".join("".join(str(int(one)) for one in row) for row in verdicts)


def _judgement(bits: str) -> Judgement:
    toxic = np.array([[one == "1" for one in word] for word in bits.split()])
    return Judgement(toxic.astype(float), toxic)


def main(
    model: Annotated[str, typer.Option(help="What load_model takes.")] = "toxloc-tiny",
    budget: Annotated[str, typer.Option(help="Budgets, with commas between.")] = "0.01,0.05",
    unit: Annotated[
        str, typer.Option(help="Of the budgets: perplexity (relative rise) or kl (nats per token).")
    ] = "perplexity",
    method: Annotated[
        list[str] | None, typer.Option(help="Method, by its name in the table; repeat for several.")
    ] = None,
    contrast: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    prompts: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    neutral: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    check: Annotated[str | None, typer.Option(help="As in toxloc run.")] = None,
    max_prompts: Annotated[int, typer.Option(help="Prompts of each kind, at most.", min=2)] = 300,
    samples: Annotated[int, typer.Option(help="Completions per prompt.", min=1)] = 5,
    max_texts: Annotated[int, typer.Option(help="Contrast texts of each side to fit on, at most.", min=8)] = 300,
    max_neutral: Annotated[int, typer.Option(help="Everyday texts, at most.", min=12)] = 500,
    choices: Annotated[str | None, typer.Option(help="Multiple-choice items in HellaSwag's layout.")] = None,
    max_choices: Annotated[int, typer.Option(help="The first so many of them.", min=1)] = 400,
    seed: Annotated[int, typer.Option(help="Of every draw.", min=0)] = 0,
    precision: Annotated[
        str,
        typer.Option(
            help="Of float32 matrix products, as in torch.set_float32_matmul_precision: "
            "medium takes bfloat16, less than half the time where the CPU has it."
        ),
    ] = "highest",
    device: Annotated[str | None, typer.Option(help="See load_model.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, and to go on from.")] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG file to draw. Needs toxloc[png].")] = None,
) -> None:
    """Fit, judge, compare, print."""
    if unit not in PRICES:
        raise ToxlocError(f"Unknown unit {unit!r} of a budget; choose one of {', '.join(PRICES)}.")
    if precision not in PRECISIONS:
        raise ToxlocError(f"Unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    torch.set_float32_matmul_precision(precision)
    settings = {
        "model": Path(model).name,
        "contrast": Path(contrast).name,
        "prompts": Path(prompts).name,
        "neutral": Path(neutral).name,
        "check": check and Path(check).name,
        "unit": unit,
        "max_prompts": max_prompts,
        "samples": samples,
        "max_texts": max_texts,
        "max_neutral": max_neutral,
        "seed": seed,
        "precision": precision,
    }
    entries = resumed(out, settings)
    opened = load_prompts(prompts).limited(max_prompts, seed)
    judged, everyday = opened.only(PROVOCATIVE) or opened, opened.only(EVERYDAY)
    pairs = load_contrast(contrast).without(opened.texts).split(0.5, seed)[0].limited(max_texts, seed)
    text = load_neutral(neutral, limit=max_neutral, seed=seed)
    other = load_neutral(check, limit=max_neutral, seed=seed) if check else None
    judges, items = get_evaluators(DEFAULT), load_choices(choices, max_choices) if choices else []
    lm = load_model(model, device=device)
    known = Methods(lm, pairs, text)
    unknown = set(method or ()) - set(known.fits)
    if unknown:
        raise ToxlocError(f"There is no method {', '.join(sorted(unknown))}; there are {', '.join(known.fits)}.")
    unedited = Unedited(lm, other.texts if other else text.check)
    judging = Judging(lm, judges, judged, everyday, unedited, items, samples, seed)
    budgets = list(map(float, budget.split(",")))
    wanted: list[tuple[str, float | None]] = [
        (BASELINE, None),
        *([] if method else [(AS_PUBLISHED, None)]),
        *product(method or known.fits, budgets),
    ]
    for name, limit in wanted:
        known_already = [e for e in entries if (e["method"], e["budget"]) == (name, limit)]
        entry: Entry = known_already[0] if known_already else {"method": name, "budget": limit}
        if not judging.lacks(entry):
            continue
        began = time.perf_counter()
        try:
            fitted = known.fit(name, None if limit is None else Budget(**{unit: limit}))
        except ToxlocError as error:  # not every method has a strength that is weak enough
            print(f"{name}, {limit}: {error}", flush=True)
            continue
        fit_seconds = time.perf_counter() - began
        with fitted.applied(lm) if fitted else nullcontext():
            judging.complete(entry)
        entry["seconds"] = {"fit": round(fit_seconds), "judge": round(time.perf_counter() - began - fit_seconds)}
        entries += [] if known_already else [entry]
        print(f"{name}, {limit}: {entry['toxicity']['any']['rate']:.1%}, {entry['seconds']}", flush=True)
        if out is not None:
            write_json(
                out,
                {
                    "command": command(settings, budget),
                    "settings": settings,
                    "n_prompts": len(judged),
                    "entries": compared(entries, seed),
                },
            )
    show(lm.name, compared(entries, seed))
    if figure is not None:
        plots.write_png(plots.frontier(entries), figure, width=WIDTH, scale=SCALE)


def resumed(out: Path | None, settings: dict[str, Any]) -> list[Entry]:
    """Read what was judged before under the same settings.

    Raises:
        ToxlocError: it was judged under other settings.
    """
    if out is None or not out.exists():
        return []
    saved = read_json(out, "comparison of methods")
    for name, value in settings.items():
        if saved["settings"].get(name) != value:
            raise ToxlocError(
                f"{out} was made with {name}={saved['settings'].get(name)}, not {value}; give another "
                "--out, or the same settings to go on."
            )
    entries: list[Entry] = saved["entries"]
    return entries


def command(settings: dict[str, Any], budget: str) -> str:
    """Return the command that repeats this."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items() if value is not None)
    return f"python -m benchmarks.methods {options} --budget {budget}"


def compared(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Add how far every rate lies above the best of its budget, and everyday prompts and choices off the baseline's."""
    base, found = entries[0], []
    for entry in entries:
        mine = [e for e in entries if e["budget"] == entry["budget"]]
        best = min(mine, key=lambda e: e["toxicity"]["any"]["rate"])
        further: Entry = {}
        if entry["budget"] is not None:
            apart = paired_difference(_judgement(best["verdicts"]), _judgement(entry["verdicts"]), seed)
            further["over_best"] = {"best": best["method"], "difference": apart.mean, "ci": list(apart.ci)}
        if "everyday" in entry:
            apart = paired_difference(
                _judgement(base["everyday"]["verdicts"]), _judgement(entry["everyday"]["verdicts"]), seed
            )
            further["everyday"] = entry["everyday"] | {"difference": apart.mean, "ci": list(apart.ci)}
        if "choices" in entry and "choices" in base:
            apart = paired_difference(_judgement(base["choices"]["right"]), _judgement(entry["choices"]["right"]), seed)
            further["choices"] = entry["choices"] | {"difference": apart.mean, "ci": list(apart.ci)}
        found.append(entry | further)
    return found


def show(name: str, entries: Sequence[Entry]) -> None:
    """Print one row a method and budget, those of each budget from the lowest rate up."""
    console, base = Console(), entries[0]["toxicity"]
    table = Table(
        "budget",
        "method",
        "toxic by any",
        "change",
        "by profanity-check",
        "over the best",
        "perplexity",
        "KL",
        "everyday",
        "words",
        "distinct-2",
        "repetition",
        "choices",
        title=name,
    )
    for entry in sorted(entries, key=lambda e: (e["budget"] or 0, e["toxicity"]["any"]["rate"])):
        figures, over, words = entry["toxicity"]["any"], entry.get("over_best"), entry["wording"]
        profane = entry["toxicity"]["profanity-check"]["rate"]
        table.add_row(
            "–" if entry["budget"] is None else f"{entry['budget']:g}",
            entry["method"],
            interval(figures["rate"], figures["rate_ci"]),
            f"{figures['rate'] / base['any']['rate'] - 1:+.0%}" if base["any"]["rate"] else "–",
            f"{profane:.1%}" + (f" ({profane / was - 1:+.0%})" if (was := base["profanity-check"]["rate"]) else ""),
            interval(over["difference"], over["ci"], "+.1%") if over else "–",
            f"{entry['fluency']['perplexity_ratio'] - 1:+.2%}",
            f"{entry['fluency']['kl']:.3f}",
            _with_difference(entry.get("everyday"), "rate"),
            f"{words['median_words']:g}",
            f"{words['distinct_2']:.2f}",
            f"{words['repetition']:.1%}",
            _with_difference(entry.get("choices"), "accuracy"),
        )
    console.print(table)


def markdown(result: dict[str, Any], only: Mapping[str, str] | None = None) -> str:
    """Return a table for the documentation: a row a method, its budgets side by side, from the best down.

    Args:
        result: as it is saved.
        only: the methods to show, each with the name to give it, in a table without the second judge and the KL.
    """
    price = PRICES[result["settings"]["unit"]]
    entries = sorted(result["entries"], key=lambda e: e["toxicity"]["any"]["rate"])
    budgets = sorted({e["budget"] for e in entries if e["budget"] is not None})
    columns = ("toxic by any", "true price") if only else ("toxic by any", "by profanity-check", "perplexity · KL")
    rows = []
    for method in dict.fromkeys(e["method"] for e in entries if not only or e["method"] in only):
        own = {e["budget"]: _cells(e, short=bool(only)) for e in entries if e["method"] == method}
        name = only[method] if only else f"{method}, no budget" if method == AS_PUBLISHED else method
        wanted = [None, *budgets[1:]] if None in own else budgets  # without a budget in the first place, if at all
        none = [""] * len(columns) if None in own else ["–"] * len(columns)
        rows.append([name, *(cell for limit in wanted for cell in own.get(limit, none))])
    return md.table(["method", *(f"{what} at {price.format(limit)}" for limit in budgets for what in columns)], rows)


def _cells(entry: Entry, short: bool) -> list[str]:
    figures, cost, unedited = entry["toxicity"]["any"], entry["fluency"], entry["method"] == BASELINE
    rate, rise = interval(figures["rate"], figures["rate_ci"]), f"{cost['perplexity_ratio'] - 1:+.1%}"
    if short:
        return [rate, "" if unedited else rise]
    return [
        rate,
        f"{entry['toxicity']['profanity-check']['rate']:.1%}",
        "" if unedited else f"{rise} · {cost['kl']:.3f}",
    ]


def agreement_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a table for the documentation: what each evaluator alone misses, unedited and at the lowest budget."""
    rows = []
    for name, result in results.items():
        lowest = min(e["budget"] for e in result["entries"] if e["budget"] is not None)
        price = PRICES[result["settings"]["unit"]].format(lowest)
        for method in AGREEMENT:
            (entry,) = (
                e
                for e in result["entries"]
                if (e["method"], e["budget"]) == (method, None if method == BASELINE else lowest)
            )
            missed, (pair,) = entry["agreement"]["missed"], entry["agreement"]["pairs"]
            rows.append(
                [
                    name,
                    method if method == BASELINE else f"{method}, {price}",
                    *(interval(missed[judge]["value"], missed[judge]["ci"], ".0%") for judge in DEFAULT),
                    *(interval(one["value"], one["ci"], ".2f") for one in (pair["spearman"], pair["kappa"])),
                ]
            )
    return md.table(["model", "method", *(f"{judge} misses" for judge in DEFAULT), "Spearman's ρ", "Cohen's κ"], rows)


def _with_difference(figures: Entry | None, name: str) -> str:
    if figures is None:
        return "–"
    apart = f" ({figures['ci'][0]:+.1%}, {figures['ci'][1]:+.1%})" if "ci" in figures else ""
    return f"{figures[name]:.1%}{apart}"


if __name__ == "__main__":
    typer.run(main)
