"""Which method turns toxicity down furthest at the same price? Every method, fitted to the same budgets, judged alike.

    python -m benchmarks.methods                                   # toxloc-tiny; --out methods.json saves it
    python -m benchmarks.methods --model SmolLM2-135M-Instruct.Q4_1.gguf --contrast rtp.jsonl --prompts rtp.jsonl
        --neutral wikitext2-valid.txt --check wikitext2-test.txt --max-prompts 400

Methods see one half of the contrast set, from which texts that begin with a judged prompt are left out, and find their
strength on the `tune` part of the neutral text, whose budget is a relative rise of perplexity. They are judged on the
prompts and on neutral text that no fit has seen: share of completions called toxic by any evaluator with its bootstrap
interval over prompts, the paired difference to the best method of the same budget, perplexity and KL on unseen text,
and whether completions still read like the baseline's: length, distinct pairs of words, repetition. AurA and ProFS have
no strength of their own in their papers; here they are interpolated to the budget like everything else, and AurA also
stands as published, whatever it costs.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import SCALE, WIDTH
from toxloc import (
    TRNE,
    AurA,
    ContrastSet,
    Damp,
    DirectionalAblation,
    Evaluation,
    Intervention,
    LinearAcT,
    LoadedModel,
    Meow2X,
    NeutralText,
    ProFS,
    Steering,
    ToxlocError,
    ValueVector,
    collect_contrast,
    evaluate,
    load_contrast,
    load_model,
    load_neutral,
    load_prompts,
    plots,
)
from toxloc.evaluators import DEFAULT, get_evaluators
from toxloc.files import write_json
from toxloc.metrics import paired_difference
from toxloc.prompts import EVERYDAY, PROVOCATIVE

Fit = Callable[[float], Intervention]
AS_PUBLISHED = "AurA as published"  # without a budget


def fits(lm: LoadedModel, pairs: ContrastSet, neutral: NeutralText) -> dict[str, Fit]:
    """Every method under the name that tables give it: from a budget to the fitted intervention."""
    statistics = collect_contrast(lm, pairs, curvature=True, more_neutral=neutral.fit)
    ours: dict[str, Any] = {"neutral": neutral, "statistics": statistics}
    return {
        "TRNE": lambda budget: TRNE.fit(lm, pairs, budget=budget, **ours),
        "TRNE, 2 rounds": lambda budget: TRNE.fit(lm, pairs, budget=budget, rounds=2, **ours),
        "TRNE, frobenius": lambda budget: TRNE.fit(lm, pairs, budget=budget, metric="frobenius", layers=lm.n_layers,
                                                   **ours),
        "Meow2X": lambda budget: Meow2X.fit(lm, pairs, budget=budget, **ours),
        "Meow2X, graded": lambda budget: Meow2X.fit(lm, pairs, budget=budget, scale="graded", **ours),
        **{name: partial(_fit, method, lm, pairs, neutral) for name, method in RIVALS.items()},
        **{f"value vector, {source}": partial(_fit, ValueVector, lm, pairs, neutral, source=source)
           for source in ("probe", "row", "svd")},
    }


RIVALS: dict[str, Any] = {"AurA": AurA, "Damp": partial(Damp.fit, scale=0.5), "Det0": partial(Damp.fit, scale=0.0),
                          "Linear-AcT": LinearAcT, "ProFS": ProFS, "steering": Steering,
                          "directional ablation": DirectionalAblation}


def _fit(method: Any, lm: LoadedModel, pairs: ContrastSet, neutral: NeutralText, budget: float,
         **settings: Any) -> Intervention:
    fit = getattr(method, "fit", method)
    fitted: Intervention = fit(lm, pairs, budget=budget, neutral=neutral, **settings)
    return fitted


def wording(completions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Does it still read like text? Median number of words, distinct-2, and the share of words said twice running.

    Distinct-2 is the number of different pairs of neighbouring words over the number of pairs, in all completions.

    Example:
        >>> wording([["a b a b", "so so"]])["distinct_2"]
        0.75
    """
    said = [text.split() for several in completions for text in several]
    twos = [pair for words in said for pair in pairwise(words)]
    return {"median_words": float(np.median([len(words) for words in said])),
            "distinct_2": len(set(twos)) / max(1, len(twos)),
            "repetition": sum(a == b for a, b in twos) / max(1, len(twos))}


def main(
    model: Annotated[str, typer.Option(help="What load_model takes.")] = "toxloc-tiny",
    budget: Annotated[str, typer.Option(help="Rises of perplexity, with commas between.")] = "0.01,0.05",
    method: Annotated[list[str] | None, typer.Option(help="Method, by its name in the table; repeat for several.")
                      ] = None,
    contrast: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    prompts: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    neutral: Annotated[str, typer.Option(help="As in toxloc run.")] = "builtin",
    check: Annotated[str | None, typer.Option(help="As in toxloc run.")] = None,
    max_prompts: Annotated[int, typer.Option(help="Prompts of each kind, at most.", min=2)] = 300,
    samples: Annotated[int, typer.Option(help="Completions per prompt.", min=1)] = 5,
    max_texts: Annotated[int, typer.Option(help="Contrast texts of each side to fit on, at most.", min=8)] = 300,
    max_neutral: Annotated[int, typer.Option(help="Everyday texts, at most.", min=12)] = 500,
    seed: Annotated[int, typer.Option(help="Of every draw.", min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="See load_model.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG file to draw. Needs toxloc[png].")] = None,
) -> None:
    """Fit, judge, compare, print."""
    began = time.perf_counter()
    opened = load_prompts(prompts).limited(max_prompts, seed)
    judged, everyday = opened.only(PROVOCATIVE) or opened, opened.only(EVERYDAY)
    pairs = load_contrast(contrast).without(opened.texts).split(0.5, seed)[0].limited(max_texts, seed)
    text = load_neutral(neutral, limit=max_neutral, seed=seed)
    other = load_neutral(check, limit=max_neutral, seed=seed) if check else None
    unseen = [*other.fit, *other.tune, *other.check] if other else text.check
    judges = get_evaluators(DEFAULT)
    lm = load_model(model, device=device)
    known = fits(lm, pairs, text)
    unknown = set(method or ()) - set(known)
    if unknown:
        raise ToxlocError(f"There is no method {', '.join(sorted(unknown))}; there are {', '.join(known)}.")

    def judge(name: str, limit: float | None, fitted: Intervention | None) -> dict[str, Any]:
        if fitted is not None:
            with fitted.applied(lm):
                return judge(name, limit, None) | {"described": fitted.describe()}
        main = evaluate(lm, judged, judges, samples=samples, seed=seed, neutral=unseen)
        entry = main.to_dict() | {"method": name, "budget": limit} | wording(main.completions)
        if everyday is not None:
            calm = evaluate(lm, everyday, judges, samples=1, seed=seed, fluency=False)
            entry["everyday_rate"] = calm.toxicity["any"].rate
        found[name, limit] = main
        print(f"{time.perf_counter() - began:5.0f} s  {name}, {limit}: {main.toxicity['any'].rate:.1%}", flush=True)
        return entry

    found: dict[tuple[str, float | None], Evaluation] = {}
    entries = [judge("baseline", None, None)]
    if method is None:
        entries.append(judge(AS_PUBLISHED, None, AurA.fit(lm, pairs, neutral=text)))
    for limit in map(float, budget.split(",")):
        for name in method or known:
            try:
                fitted = known[name](limit)
            except ToxlocError as error:  # not every method has a strength that is weak enough
                print(f"{name}, {limit}: {error}")
                continue
            entries.append(judge(name, limit, fitted))
    compare(entries, found, seed)
    show(lm.name, entries)
    result = {"command": f"python -m benchmarks.methods --model {Path(model).name} --budget {budget} "
                         f"--max-prompts {max_prompts} --samples {samples} --max-texts {max_texts} --seed {seed}",
              "model": lm.name, "n_prompts": len(judged), "samples": samples, "contrast": pairs.name,
              "seconds": round(time.perf_counter() - began), "entries": entries}
    if out is not None:
        write_json(out, result)
    if figure is not None:
        plots.write_png(plots.frontier(entries), figure, width=WIDTH, scale=SCALE)


def compare(entries: list[dict[str, Any]], found: dict[tuple[str, float | None], Evaluation], seed: int) -> None:
    """Note in every entry how far its rate lies above that of the best of its budget, with the paired interval."""
    for limit in {entry["budget"] for entry in entries} - {None}:
        mine = [entry for entry in entries if entry["budget"] == limit]
        best = min(mine, key=lambda entry: entry["toxicity"]["any"]["rate"])["method"]
        for entry in mine:
            difference = paired_difference(found[best, limit].judgements["any"],
                                           found[entry["method"], limit].judgements["any"], seed)
            entry["over_best"] = {"best": best, "difference": difference.mean, "ci": list(difference.ci)}


def show(name: str, entries: Sequence[dict[str, Any]]) -> None:
    """Print one row a method and budget, those of each budget from the lowest rate up."""
    console, base = Console(), entries[0]["toxicity"]["any"]["rate"]
    table = Table("budget", "method", "toxic by any", "change", "over the best", "perplexity", "KL", "everyday",
                  "words", "distinct-2", title=name)
    for entry in sorted(entries, key=lambda e: (e["budget"] or 0, e["toxicity"]["any"]["rate"])):
        figures, over = entry["toxicity"]["any"], entry.get("over_best")
        low, high = figures["rate_ci"]
        table.add_row(
            "–" if entry["budget"] is None else f"{entry['budget']:.0%}", entry["method"],
            f"{figures['rate']:.1%} [{low:.1%}, {high:.1%}]", f"{figures['rate'] / base - 1:+.0%}" if base else "–",
            f"{over['difference']:+.1%} [{over['ci'][0]:+.1%}, {over['ci'][1]:+.1%}]" if over else "–",
            f"{entry['fluency']['perplexity_ratio'] - 1:+.2%}", f"{entry['fluency']['kl']:.3f}",
            f"{entry['everyday_rate']:.1%}" if "everyday_rate" in entry else "–",
            f"{entry['median_words']:g}", f"{entry['distinct_2']:.2f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
