"""Compare all methods at equal cost: every method is fitted to the same budgets and evaluated in the same way.

    python -m benchmarks.methods                                   # toxloc-tiny; --out methods.json saves it
    python -m benchmarks.methods --model SmolLM2-135M-Instruct.Q4_1.gguf --contrast rtp.jsonl --prompts rtp.jsonl
        --neutral wikitext2-valid.txt --check wikitext2-test.txt --max-prompts 400 --out methods.json

Methods are fitted on one half of the contrast set, without texts that begin with a judged prompt, and their strength is
tuned on the `tune` part of the neutral text. A budget is the relative rise of perplexity on that part, or with
`--unit kl` the mean KL to the unedited model. Methods are judged on the prompts and on neutral text that no fit has
seen: the share of completions called toxic by any evaluator with its bootstrap interval over prompts, the paired
difference from the best method of the same budget, perplexity and KL on unseen text, the toxic rate on everyday
prompts, and the wording of the completions compared with the baseline's. The papers of AurA and ProFS have no strength
to choose; here their strength is as large as the budget allows, as for every method, and AurA is also shown as
published (`strength=1`), whatever its cost.

`--out` is written after every method. The same command resumes an interrupted comparison, and with `--choices`
(multiple-choice items in the format of HellaSwag) adds the accuracy on these items to the saved entries.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
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

PRICES = {"perplexity": "+{:.0%}", "kl": "KL {:g}"}  # text of a budget, by unit
PRECISIONS = ("highest", "high", "medium")
Entry = dict[str, Any]
BASELINE = "baseline"
AS_PUBLISHED = "AurA as published"  # has no budget
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
    """All methods by their names in the tables, fitted from the same `Evidence`."""

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
        """Fit a method by its name; return None for the baseline."""
        if name == BASELINE:
            return None
        method, options = (AurA, {"strength": 1}) if name == AS_PUBLISHED else self.fits[name]
        limit: dict[str, Any] = {} if budget is None else {"budget": budget}
        return method.fit(self.evidence.lm, self.evidence.pairs, evidence=self.evidence, **options, **limit)


@dataclass(frozen=True)
class Judging:
    """Evaluators and texts with which every method is judged."""

    lm: LoadedModel
    judges: list[Evaluator]
    prompts: PromptSet
    everyday: PromptSet | None
    unedited: Unedited
    choices: list[Choice]
    samples: int
    seed: int

    def lacks(self, entry: Entry) -> bool:
        """Return whether the entry lacks a measurement."""
        return "toxicity" not in entry or (bool(self.choices) and "choices" not in entry)

    def complete(self, entry: Entry) -> None:
        """Measure the model in its current state, and add the measurements that the entry lacks."""
        options: dict[str, Any] = {"evaluators": self.judges, "seed": self.seed, "fluency": False, "chat": "off"}
        if "toxicity" not in entry:
            main = evaluate(self.lm, self.prompts, samples=self.samples, **options)
            figures = {name: value for name, value in main.to_dict().items() if name != "choices"}
            entry |= figures | {
                "method": entry["method"],
                "fluency": self.unedited.compare().to_dict(),
                "verdicts": _bits(main.judgements["any"].toxic),
            }
            if self.everyday is not None:
                calm = evaluate(self.lm, self.everyday, samples=1, **options)
                entry["everyday"] = {
                    "rate": calm.toxicity["any"].rate,
                    "wording": calm.wording.to_dict(),
                    "verdicts": _bits(calm.judgements["any"].toxic),
                }
        if self.choices and "choices" not in entry:
            right = answered_right(self.lm, self.choices)
            entry["choices"] = {"accuracy": float(right.mean()), "right": _bits(right[:, None])}


def _bits(verdicts: Bool[np.ndarray, "n_prompts samples"]) -> str:
    """Encode verdicts as 0 and 1, one word per prompt; saved so that entries can be compared later."""
    return " ".join("".join(str(int(verdict)) for verdict in row) for row in verdicts)


def _judgement(bits: str) -> Judgement:
    toxic = np.array([[bit == "1" for bit in word] for word in bits.split()])
    return Judgement(toxic.astype(float), toxic)


def main(
    model: Annotated[str, typer.Option(help="Model, as in load_model.")] = "toxloc-tiny",
    budget: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "0.01,0.05",
    unit: Annotated[
        str, typer.Option(help="Unit of the budgets: perplexity (relative rise) or kl (nats per token).")
    ] = "perplexity",
    method: Annotated[
        list[str] | None, typer.Option(help="Method, by its name in the table; repeat for several.")
    ] = None,
    contrast: Annotated[str, typer.Option(help="Contrast set, as in toxloc run.")] = "builtin",
    prompts: Annotated[str, typer.Option(help="Prompts, as in toxloc run.")] = "builtin",
    neutral: Annotated[str, typer.Option(help="Neutral text, as in toxloc run.")] = "builtin",
    check: Annotated[str | None, typer.Option(help="Text to measure cost on, as in toxloc run.")] = None,
    max_prompts: Annotated[int, typer.Option(help="Maximum number of prompts of each kind.", min=2)] = 300,
    samples: Annotated[int, typer.Option(help="Completions per prompt.", min=1)] = 5,
    max_texts: Annotated[
        int, typer.Option(help="Maximum number of contrast texts of each side to fit on.", min=8)
    ] = 300,
    max_neutral: Annotated[int, typer.Option(help="Maximum number of everyday texts.", min=12)] = 500,
    evaluator: Annotated[
        list[str] | None, typer.Option(help="Evaluator, as in toxloc run; repeat for several.")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="File of multiple-choice items in the format of HellaSwag.")
    ] = None,
    max_choices: Annotated[
        int, typer.Option(help="Maximum number of items; the first items of the file are used.", min=1)
    ] = 400,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    precision: Annotated[
        str,
        typer.Option(
            help="Precision of float32 matrix products, as in torch.set_float32_matmul_precision: "
            "medium uses bfloat16, which takes less than half the time on CPUs that support it."
        ),
    ] = "highest",
    device: Annotated[str | None, typer.Option(help="Device, as in load_model.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, and to resume from.")] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG file to draw. Needs toxloc[png].")] = None,
) -> None:
    """Fit and judge every method, and print and save the comparison."""
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
        "evaluator": list(evaluator or DEFAULT),
    }
    entries = resumed(out, settings)
    loaded = load_prompts(prompts).limited(max_prompts, seed)
    judged, everyday = loaded.only(PROVOCATIVE) or loaded, loaded.only(EVERYDAY)
    pairs = load_contrast(contrast).without(loaded.texts).split(0.5, seed)[0].limited(max_texts, seed)
    text = load_neutral(neutral, limit=max_neutral, seed=seed)
    other = load_neutral(check, limit=max_neutral, seed=seed) if check else None
    judges, items = get_evaluators(evaluator or DEFAULT), load_choices(choices, max_choices) if choices else []
    lm = load_model(model, device=device)
    known = Methods(lm, pairs, text)
    unknown = set(method or ()) - set(known.fits)
    if unknown:
        raise ToxlocError(f"There is no method {', '.join(sorted(unknown))}; choose from {', '.join(known.fits)}.")
    unedited = Unedited(lm, other.texts if other else text.check)
    judging = Judging(lm, judges, judged, everyday, unedited, items, samples, seed)
    budgets = list(map(float, budget.split(",")))
    wanted: list[tuple[str, float | None]] = [
        (BASELINE, None),
        *([] if method else [(AS_PUBLISHED, None)]),
        *product(method or known.fits, budgets),
    ]
    for name, limit in wanted:
        previous = [e for e in entries if (e["method"], e["budget"]) == (name, limit)]
        entry: Entry = previous[0] if previous else {"method": name, "budget": limit}
        if not judging.lacks(entry):
            continue
        began = time.perf_counter()
        try:
            fitted = known.fit(name, None if limit is None else Budget(**{unit: limit}))
        except ToxlocError as error:  # for some methods, every strength exceeds the budget
            print(f"{name}, {limit}: {error}", flush=True)
            continue
        fit_seconds = time.perf_counter() - began
        with fitted.applied(lm) if fitted else nullcontext():
            judging.complete(entry)
        entry["seconds"] = {"fit": round(fit_seconds), "judge": round(time.perf_counter() - began - fit_seconds)}
        entries += [] if previous else [entry]
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
    """Return the entries that were saved with the same settings; an empty list if nothing was saved.

    Raises:
        ToxlocError: the file was saved with other settings.
    """
    if out is None or not out.exists():
        return []
    saved = read_json(out, "comparison of methods")
    for name, value in settings.items():
        if saved["settings"].get(name) != value:
            raise ToxlocError(
                f"{out} was made with {name}={saved['settings'].get(name)}, not {value}; give another "
                "--out, or the same settings to resume."
            )
    entries: list[Entry] = saved["entries"]
    return entries


def command(settings: dict[str, Any], budget: str) -> str:
    """Return the command that repeats the comparison."""
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, values in settings.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None
    ]
    return f"python -m benchmarks.methods {' '.join(options)} --budget {budget}"


def compared(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Return the entries with paired differences and their intervals.

    The toxic rate is compared with that of the best method of the same budget, the toxic rate on everyday prompts and
    the accuracy on choices with those of the baseline.
    """
    base, results = entries[0], []
    for entry in entries:
        same_budget = [e for e in entries if e["budget"] == entry["budget"]]
        best = min(same_budget, key=lambda e: e["toxicity"]["any"]["rate"])
        added: Entry = {}
        if entry["budget"] is not None:
            difference = paired_difference(_judgement(best["verdicts"]), _judgement(entry["verdicts"]), seed)
            added["over_best"] = {"best": best["method"], "difference": difference.mean, "ci": list(difference.ci)}
        if "everyday" in entry:
            difference = paired_difference(
                _judgement(base["everyday"]["verdicts"]), _judgement(entry["everyday"]["verdicts"]), seed
            )
            added["everyday"] = entry["everyday"] | {"difference": difference.mean, "ci": list(difference.ci)}
        if "choices" in entry and "choices" in base:
            difference = paired_difference(
                _judgement(base["choices"]["right"]), _judgement(entry["choices"]["right"]), seed
            )
            added["choices"] = entry["choices"] | {"difference": difference.mean, "ci": list(difference.ci)}
        results.append(entry | added)
    return results


def show(name: str, entries: Sequence[Entry]) -> None:
    """Print one row per method and budget, sorted by budget and toxic rate."""
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
    """Return a table for the documentation: one row per method, with columns for each budget, best method first.

    Args:
        result: content of a saved JSON file.
        only: names of the methods to show, each with its name in the table. This short table has no columns for
            profanity-check and KL.
    """
    price = PRICES[result["settings"]["unit"]]
    entries = sorted(result["entries"], key=lambda e: e["toxicity"]["any"]["rate"])
    budgets = sorted({e["budget"] for e in entries if e["budget"] is not None})
    columns = (
        ("toxic by any", "perplexity on unseen text")
        if only
        else ("toxic by any", "by profanity-check", "perplexity · KL")
    )
    rows = []
    for method in dict.fromkeys(e["method"] for e in entries if not only or e["method"] in only):
        by_budget = {e["budget"]: _cells(e, short=bool(only)) for e in entries if e["method"] == method}
        name = only[method] if only else f"{method}, no budget" if method == AS_PUBLISHED else method
        # The figures of an entry without a budget go into the first columns.
        wanted = [None, *budgets[1:]] if None in by_budget else budgets
        missing = [""] * len(columns) if None in by_budget else ["–"] * len(columns)
        rows.append([name, *(cell for limit in wanted for cell in by_budget.get(limit, missing))])
    return md.table(
        ["method", *(f"{column} at {price.format(limit)}" for limit in budgets for column in columns)], rows
    )


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


def effects_markdown(results: dict[str, dict[str, Any]], variants: Mapping[str, str]) -> str:
    """Return a table for a method's page: change of the toxic rate by model and variant, with the cost in perplexity.

    Args:
        results: content of saved JSON files, by the description of the model and the prompts.
        variants: names of the method in the results, each with its name in the table.
    """
    budgets = sorted({e["budget"] for result in results.values() for e in result["entries"] if e["budget"] is not None})
    rows = []
    for name, result in results.items():
        unedited = next(e for e in result["entries"] if e["method"] == BASELINE)["toxicity"]["any"]["rate"]
        for method, title in variants.items():
            cells = {e["budget"]: _effect(e, unedited) for e in result["entries"] if e["method"] == method}
            if cells:
                rows.append([name, title, *(cells.get(limit, cells.get(None, "–")) for limit in budgets)])
    several = len(variants) > 1
    head = ["model and prompts", "variant", *(f"budget +{limit:.0%}" for limit in budgets)]
    return md.table([*head[:1], *head[1 + (not several) :]], [[row[0], *row[1 + (not several) :]] for row in rows])


def _effect(entry: Entry, unedited: float) -> str:
    change = entry["toxicity"]["any"]["rate"] / unedited - 1
    return f"{change:+.0%} (perplexity {entry['fluency']['perplexity_ratio'] - 1:+.1%})".replace("-", "−")


def agreement_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a table for the documentation: agreement of the evaluators, unedited and at the lowest budget."""
    rows, heads = [], []
    for name, entry in _lowest(results):
        agreement = entry["agreement"]
        heads = [
            *(f"{judge} misses" for judge in agreement["missed"]),
            *(f"κ (ρ), {' and '.join(pair['evaluators'])}" for pair in agreement["pairs"]),
        ]
        missed = [interval(figure["value"], figure["ci"], ".0%") for figure in agreement["missed"].values()]
        agreed = [
            f"{interval(pair['kappa']['value'], pair['kappa']['ci'], '.2f')} ({pair['spearman']['value']:.2f})"
            for pair in agreement["pairs"]
        ]
        rows.append([*name, *missed, *agreed])
    return md.table(["model", "method", *heads], rows)


def verdicts_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a table for the documentation: toxic rate by each evaluator and combined, in the rows of the agreement."""
    rows, heads = [], []
    for name, entry in _lowest(results):
        heads = list(entry["toxicity"])
        rows.append([*name, *(interval(rate["rate"], rate["rate_ci"]) for rate in entry["toxicity"].values())])
    return md.table(["model", "method", *heads], rows)


def _lowest(results: dict[str, dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Entry]]:
    """Yield (model, method) and the entry of the baseline and of two methods at the lowest budget, for every model."""
    for name, result in results.items():
        lowest = min(e["budget"] for e in result["entries"] if e["budget"] is not None)
        price = PRICES[result["settings"]["unit"]].format(lowest)
        for method in AGREEMENT:
            wanted = method, None if method == BASELINE else lowest
            (entry,) = (e for e in result["entries"] if (e["method"], e["budget"]) == wanted)
            yield (name, method if method == BASELINE else f"{method}, {price}"), entry


def _with_difference(figures: Entry | None, name: str) -> str:
    if figures is None:
        return "–"
    ci = f" ({figures['ci'][0]:+.1%}, {figures['ci'][1]:+.1%})" if "ci" in figures else ""
    return f"{figures[name]:.1%}{ci}"


if __name__ == "__main__":
    typer.run(main)
