"""Measure the cost and the memory of counterfactual attribution, and whether it agrees with exact patching.

    python -m benchmarks.patching_cost                      # six minutes on one core; --out patching-cost.json saves it
    python -m benchmarks.patching_cost --model smollm2-135m --pairs 40 --out patching-cost.json

Three questions are answered for a model, on pairs of the built-in contrast set that share a prefix:

* cost: the time of the pass that gives the score `counterfactual` at all MLPs and attentions, in multiples of a plain
  forward pass of the Hugging Face model over the same batches, without gradients. Both run once per round in a random
  order, after a warm-up round; the best time of each counts.
* memory: the rise of the peak memory while some pairs are attributed, in a separate process for each number of pairs.
  The pairs are repeated from the start if more are needed. 1 MB is 10^6 bytes.
* agreement: Spearman's rank correlation of the estimated and the exact effects of all MLPs and attentions, with a 95%
  bootstrap interval over these sites, and the processor's seconds that each took, for every replacement. D is that at
  the first difference, except for `counterfactual`, where it is that over the endings.

With `--out`, the answers are saved one by one, those in the file for the same number of pairs are kept, and the results
of other models stay in it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from scipy.stats import rankdata

import toxloc
from benchmarks import markdown as md
from benchmarks.speed import MB, ROOT, Setting, describe, interleaved
from toxloc import ContrastSet
from toxloc.causal.patching import BASELINES, METHODS
from toxloc.localization.difference_statistics import collect_differences
from toxloc.localization.first_difference import FirstDifferences, first_differences
from toxloc.localization.pair_batch import PairReader
from toxloc.localization.text_statistics import collect
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import BySite, Site
from toxloc.support.files import read_json, write_json
from toxloc.support.intervals import Interval, bootstrap
from toxloc.support.memory import PeakMemory

SIZES = (100, 300, 1000, 3000)  # numbers of pairs
ROUNDS = 7
ESTIMATES = METHODS[1:]


def sites_of(lm: LoadedModel) -> list[Site]:
    """Return all MLPs and attentions."""
    return lm.sites("mlp", "attention")


def usable_pairs(lm: LoadedModel, count: int) -> ContrastSet:
    """Return built-in pairs that share a prefix, in their order, repeated from the start if more are needed."""
    pairs = toxloc.load_contrast()
    usable = [difference.pair for difference in first_differences(lm, pairs).usable]
    chosen = [usable[i % len(usable)] for i in range(count)]
    return ContrastSet([pairs.toxic[i] for i in chosen], [pairs.neutral[i] for i in chosen], paired=True)


# Cost


@torch.inference_mode()
def plain(lm: LoadedModel, differences: FirstDifferences) -> None:
    """Compute the logits of the prefixes and drop them."""
    reader = PairReader(lm, differences.usable, "mean", "first", skip_first=False, gradients=True)
    for index in reader.groups():
        tokens = reader.batch(index).tokens
        lm.hf(input_ids=tokens.ids, attention_mask=tokens.mask, use_cache=False)


def cost(lm: LoadedModel, pairs: ContrastSet, rounds: int) -> dict[str, Any]:
    """Time the pass of the score `counterfactual` and a plain forward pass."""
    differences, sites = first_differences(lm, pairs), sites_of(lm)
    keys = collect(lm, pairs.neutral, sites=sites, gradients=False).keys
    baseline = BySite({site: moments.mean for site, moments in keys.items()})
    jobs: dict[str, Callable[[], object]] = {
        "plain": partial(plain, lm, differences),
        "counterfactual": partial(collect_differences, lm, differences, sites=sites, baseline=baseline),
    }
    times = interleaved(jobs, rounds, seed=0)
    best = {name: min(seconds) for name, seconds in times.items()}
    return {
        "tokens": sum(len(difference.prefix) for difference in differences.usable),
        "times": times,
        "of_plain": best["counterfactual"] / best["plain"],
    }


# Memory


def peak_of(lm: LoadedModel, count: int) -> int | None:
    """Return the rise of the peak memory in bytes while some pairs are attributed."""
    few, pairs, sites = usable_pairs(lm, 8), usable_pairs(lm, count), sites_of(lm)
    attribute = partial(toxloc.patch, lm, sites=sites, by="resample", method="attribution", draws=100)
    attribute(pairs=few)  # loads the weights into memory and initialises the libraries
    with PeakMemory(lm.device) as peak:
        attribute(pairs=pairs)
    return peak.rise


def peak_in_process(setting: Setting, count: int) -> int | None:
    """Call `peak_of` in a new process.

    Raises:
        ToxlocError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.patching_cost", "--peak-of", str(count), "--model", setting.model]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise toxloc.ToxlocError(f"The memory of {count} pairs was not measured: {done.stderr.strip()[-2000:]}")
    peak: int | None = json.loads(done.stdout.splitlines()[-1])
    return peak


# Agreement


def effects(lm: LoadedModel, pairs: ContrastSet, by: Any, method: Any) -> dict[str, Any]:
    """Return the effects of all sites by one method, and the seconds of the processor that it took."""
    began = time.process_time()
    result = toxloc.patch(lm, pairs, sites_of(lm), by, method=method, draws=0)
    return {"seconds": time.process_time() - began, "over": result.over, "effect": result.effect.tolist()}


def rank_correlation(a: Float[np.ndarray, "*draws n"], b: Float[np.ndarray, "*draws n"]) -> Float[np.ndarray, "*draws"]:
    """Return Spearman's rank correlation of the last axes."""
    ranks = [x - x.mean(-1, keepdims=True) for x in (rankdata(a, axis=-1), rankdata(b, axis=-1))]
    correlation: np.ndarray = (ranks[0] * ranks[1]).sum(-1) / np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    return correlation


def agreement(exact: Mapping[str, Any], estimate: Mapping[str, Any]) -> tuple[float, Interval]:
    """Return the rank correlation of estimated and exact effects, and its interval over sites."""
    a, b = np.array(exact["effect"]), np.array(estimate["effect"])
    return float(rank_correlation(a, b)), bootstrap(lambda i: rank_correlation(a[i], b[i]), len(a), seed=0)


def measure(
    setting: Setting, n_pairs: int, sizes: Sequence[int], known: dict[str, Any], save: Callable[[], None]
) -> None:
    """Fill in what is missing in the result of a model, and save after each step.

    Separate processes run first, while this process has not loaded a model.
    """
    memory: dict[str, int | None] = known.setdefault("memory", {})
    for count in sizes:
        if str(count) not in memory:
            memory[str(count)] = peak_in_process(setting, count)
            save()
    lm = setting.load()
    pairs = usable_pairs(lm, n_pairs)
    known |= describe(lm, setting) | {"pairs": n_pairs, "sites": len(sites_of(lm))}
    if "cost" not in known:
        known["cost"] = cost(lm, pairs, ROUNDS)
        save()
    for by in BASELINES:
        done = known.setdefault("effects", {}).setdefault(by, {})
        for method in METHODS:
            if method not in done:
                done[method] = effects(lm, pairs, by, method)
                typer.echo(f"  {by}, {method}: {done[method]['seconds']:.1f} s", err=True)
                save()


def agreement_markdown(results: Mapping[str, Any]) -> str:
    """Return a table for the documentation: the agreement and the seconds of each method."""
    rows = []
    for model, result in results["models"].items():
        for by, methods in result["effects"].items():
            cells = []
            for method in ESTIMATES:
                value, (low, high) = agreement(methods["exact"], methods[method])
                cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
            seconds = md.SIDE_BY_SIDE.join(f"{methods[method]['seconds']:.1f}" for method in METHODS)
            rows.append([f"{model}, {result['sites']}, {result['pairs']}", f"`{by}`", *cells, seconds])
    head = ["model, sites, pairs", "by", *(f"`{method}`" for method in ESTIMATES), f"CPU seconds: {', '.join(METHODS)}"]
    return md.table(head, rows)


def cost_markdown(results: Mapping[str, Any]) -> str:
    """Return a table for the documentation: time in multiples of a plain pass, and memory by number of pairs."""
    models = results["models"].values()
    sizes = list(dict.fromkeys(size for result in models for size in result["memory"]))
    rows = [
        [
            result["model"],
            f"{result['cost']['of_plain']:.2f}",
            *(f"{result['memory'][size] / MB:,.0f}" if result["memory"].get(size) else "–" for size in sizes),
        ]
        for result in models
    ]
    return md.table(["model", "× plain", *(f"{int(size):,} pairs: peak MB" for size in sizes)], rows, numbers=True)


def main(
    model: Annotated[str, typer.Option(help="Model, as in `toxloc run`.")] = "toxloc-tiny",
    pairs: Annotated[int, typer.Option(help="Number of pairs for cost and agreement.", min=2)] = 100,
    sizes: Annotated[str, typer.Option(help="Numbers of pairs for memory, by commas.")] = ",".join(map(str, SIZES)),
    out: Annotated[Path | None, typer.Option(help="JSON file to save to, and to go on from.", dir_okay=False)] = None,
    peak_pairs: Annotated[int | None, typer.Option("--peak-of", hidden=True)] = None,
) -> None:
    """Measure cost, memory and agreement with exact patching for one model."""
    setting = Setting(model, "cpu")
    if peak_pairs is not None:
        print(json.dumps(peak_of(setting.load(), peak_pairs)))
        return
    results: dict[str, Any] = {"models": {}}
    if out is not None and out.is_file():
        results = read_json(out, "result of a benchmark")
    known = results["models"].get(model, {})
    if known.get("pairs", pairs) != pairs:
        known = {"memory": known["memory"]}
    known["command"] = f"python -m benchmarks.patching_cost --model {model} --pairs {pairs}"
    results["models"][model] = known

    def save() -> None:
        if out is not None:
            write_json(out, results)

    measure(setting, pairs, [int(size) for size in sizes.split(",") if size], known, save)
    save()
    only = {"models": {model: known}}
    print(agreement_markdown(only), cost_markdown(only), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
