"""Measure the time and memory of the passes of localization, a plain forward pass and the usual alternatives.

    python -m benchmarks.speed                                    # prints; --out speed.json saves it

All contenders process the same batches, which each contender makes from the texts within the timed region.

* plain: the forward pass of the Hugging Face model; the logits are dropped. The unit of the other times.
* activation pass: `toxloc.localization.text_statistics.collect` without gradients, streaming. It skips the unembedding.
* activation pass, with peaks: the same, and writes the largest activations of every text to a temporary file, which
  `auroc` needs.
* gradient pass: `collect` with gradients: the moments, G of every layer, and the contribution of every group of texts.
* run_with_cache of everything: caches all hook points, reduces them to the moments after each batch, and drops them.
* filtered cache: `run_with_cache` keeps the neurons and the MLP outputs of all texts, which are reduced at the end.
* full autograd: gradients with respect to W_out, accumulated in `.grad`. It computes G only: no moments and no
  contributions.

Every round runs all contenders once in a new random order, so that a slowdown of the machine affects all of them. The
first round is a warm-up and is not counted. `× plain` is the median over the rounds of the ratio to the plain pass of
the same round. Peak memory, and the times on growing numbers of texts, are measured in a separate process for each
number. Peak memory is the rise of the resident set (on CUDA: of the memory that torch allocated) above its size after
the model was loaded, the texts were tokenised and one text was run. Temporary files are not included. 1 MB is 10^6
bytes. The texts are the built-in contrast texts (1,040, toxic and neutral) in random order, repeated from the start if
more are needed.
"""

import gc
import json
import os
import platform
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

import toxloc
from benchmarks import markdown as md
from toxloc.localization.contributions import SKETCH
from toxloc.localization.text_statistics import collect
from toxloc.models.batching import Batch, batches
from toxloc.models.loaded import LoadedModel
from toxloc.support.files import write_json
from toxloc.support.memory import PeakMemory

ROOT = Path(__file__).parents[1]
MB = 10**6
GROWING = ("activation pass", "gradient pass", "filtered cache")
K = TypeVar("K")
Contender = Callable[[LoadedModel, Sequence[str]], list[Tensor]]
Rows = tuple[list[str], list[list[str]]]


# The contenders. Each returns a tensor per layer: the means of the neurons, or G. The plain pass returns nothing.


@torch.inference_mode()
def plain(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Compute the logits and drop them; return no tensors."""
    for batch in batches(lm, texts):
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return []


def activation_pass(lm: LoadedModel, texts: Sequence[str], peaks: bool = False) -> list[Tensor]:
    """Compute moments and contributions in the hooks; return the means of the neurons."""
    return [moments.mean for moments in collect(lm, texts, gradients=False, peaks=peaks).keys.values()]


def gradient_pass(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Compute moments, contributions and G in the hooks; return G."""
    return list(collect(lm, texts).G.values())


@torch.inference_mode()
def cache_of_everything(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Cache all hook points, one batch at a time; return the means of the neurons."""
    return _means(lm, _cached(lm, texts, None))


@torch.inference_mode()
def filtered_cache(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Cache two hook points per layer for all texts together; return the means of the neurons."""
    names = [name for layer in range(lm.n_layers) for name in _hooks(lm, layer)]
    return _means(lm, list(_cached(lm, texts, names)))


def full_autograd(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Accumulate the gradient with respect to every W_out with autograd; return G."""
    modules = [lm.down_projection(layer) for layer in range(lm.n_layers)]
    weights: list[nn.Parameter] = [module.get_parameter("weight") for module in modules]
    before = [weight.requires_grad for weight in weights]
    predicted = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches(lm, texts):
            labels = batch.ids.masked_fill(batch.mask == 0, -100)
            logits = lm.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            predicted += int(batch.mask[:, 1:].sum())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)
            weight.grad = None
    return [
        (gradient.T if isinstance(module, nn.Linear) else gradient) / predicted
        for module, gradient in zip(modules, gradients, strict=True)
    ]


CONTENDERS: dict[str, Contender] = {
    "plain": plain,
    "activation pass": activation_pass,
    "activation pass, with peaks": partial(activation_pass, peaks=True),
    "gradient pass": gradient_pass,
    "run_with_cache of everything": cache_of_everything,
    "filtered cache": filtered_cache,
    "full autograd": full_autograd,
}


def _cached(lm: LoadedModel, texts: Sequence[str], names: list[str] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield the token weights and the cache of every batch; as in `collect`, padding and first tokens have weight 0."""
    for batch in batches(lm, texts):
        # The cache gets no name here, because a name would keep it alive while the next cache is made.
        yield (
            _weights(batch),
            lm.hooked.run_with_cache(
                batch.ids, attention_mask=batch.mask, use_cache=False, names_filter=names, return_cache_object=False
            )[1],
        )


def _hooks(lm: LoadedModel, layer: int) -> list[str]:
    """Return the names of two hook points of a layer: its neurons, and the output of its MLP to the residual stream."""
    view = lm.at(layer)
    return [str(view.keys_hook), str(view.write_hook)]


def _weights(batch: Batch) -> Tensor:
    weights = batch.mask.float()
    weights[:, 0] = 0
    return weights.view(-1)


def _means(lm: LoadedModel, caches: Iterable[tuple[Tensor, dict[str, Any]]]) -> list[Tensor]:
    """Reduce caches to the sums for the means and variances of neurons and outputs; return the means of the neurons."""
    device, layers = lm.device, range(lm.n_layers)
    sums = [[torch.zeros(2, d, device=device) for d in (lm.d_mlp, lm.d_model)] for _ in layers]
    count = 0.0
    for weights, cached in caches:
        count += float(weights.sum())
        for layer in layers:
            for total, name in zip(sums[layer], _hooks(lm, layer), strict=True):
                rows = cached[name].view(len(weights), -1).float()
                total[0] += weights @ rows
                total[1] += weights @ (rows * rows)
        del cached  # free it before the next cache is made
    return [neurons[0].double() / count for neurons, _ in sums]


def floor(lm: LoadedModel, length: float, predicting: float = 1.0) -> dict[str, float]:
    """Count the multiply-adds of the passes, as multiples of a plain forward pass: a lower bound of their cost.

    The multiply-adds of one position are counted:

    * forward: one per element of a weight matrix (`nn.Linear`, `Conv1D`; embeddings are looked up, not multiplied) and,
      in every layer, `length` x the width of the heads for the attention scores and as many for mixing the values, over
      the whole width of a padded batch and not only its causal half, as implementations do.
    * activation pass: forward without the unembedding.
    * backward: from the logits to the output of the first MLP, so through the unembedding and all blocks but the first.
      A matrix takes as many as in the forward pass; attention takes twice as many (both factors of both products).
    * G: aᵀδ, d_mlp x d_model in every layer.
    * sketches: P a, Q δ and their product, in every layer.
    * attributions: <m, δ>, d_model in every layer.

    A gradient pass is the sum of forward, backward, G, sketches and attributions, but applies the unembedding only at
    positions where a token is predicted. Full autograd applies the unembedding at all positions and computes neither
    sketches nor attributions. Elementwise operations (norms, activation functions, the moments) are not counted.

    Args:
        lm: the model.
        length: number of positions that a position attends to: the width of its batch, averaged over positions.
        predicting: share of the positions at which a token is predicted.

    Returns:
        The multiples by name: of the passes, and of the parts that a gradient pass adds.
    """
    config, layers = lm.hf.config, lm.n_layers
    blocks = [lm.block(layer) for layer in range(layers)]
    unembedding = _matrices(lm.hf.get_output_embeddings())
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2 * length * heads * head
    forward = _matrices(lm.hf) + layers * attention
    k, q = min(SKETCH, lm.d_mlp), min(SKETCH, lm.d_model)
    parts = {
        "backward": unembedding + sum(map(_matrices, blocks[1:])) + (layers - 1) * 2 * attention,
        "G": layers * lm.d_mlp * lm.d_model,
        "sketches": layers * (k * lm.d_mlp + q * lm.d_model + k * q),
        "attributions": layers * lm.d_model,
    }
    totals = {
        "plain": forward,
        "activation pass": forward - unembedding,
        "activation pass, with peaks": forward - unembedding,
        "gradient pass": forward + sum(parts.values()) - 2 * (1 - predicting) * unembedding,
        "full autograd": forward + parts["backward"] + parts["G"],
    }
    return {name: count / forward for name, count in (totals | parts).items()}


def _matrices(module: nn.Module) -> int:
    """Return the number of elements in the weight matrices of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | Conv1D))


# Measuring


@dataclass(frozen=True)
class Setting:
    """Model, device, precision, and the seed for the order of texts and contenders."""

    model: str = "toxloc-tiny"
    device: str | None = None
    dtype: str = "float32"
    seed: int = 0

    def options(self) -> list[str]:
        """Return the setting as command-line options."""
        device = ["--device", self.device] if self.device else []
        return ["--model", self.model, *device, "--dtype", self.dtype, "--seed", str(self.seed)]

    def load(self) -> LoadedModel:
        """Load the model and, on a CPU, set the number of torch threads."""
        lm = toxloc.load_model(self.model, device=self.device, dtype=self.dtype)
        if lm.device.type == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))
        return lm

    def texts(self, count: int) -> list[str]:
        """Return the first `count` texts of a fixed random order of the contrast texts."""
        pairs = toxloc.load_contrast()
        texts = pairs.toxic + pairs.neutral
        random.Random(self.seed).shuffle(texts)
        return list(islice(cycle(texts), count))


def interleaved(
    jobs: Mapping[K, Callable[[], object]], repeats: int, seed: int, wait: Callable[[], None] = lambda: None
) -> dict[K, list[float]]:
    """Time jobs in rounds, after a warm-up round that is not counted.

    Args:
        jobs: functions to time, by name.
        repeats: number of rounds to count.
        seed: seed for the order within each round.
        wait: function that returns when the device has finished its work, for asynchronous devices.

    Returns:
        For each job the seconds of every counted round, in order.
    """
    rng = random.Random(seed)
    seconds: dict[K, list[float]] = {key: [] for key in jobs}
    for nth in range(repeats + 1):
        for key in rng.sample(list(jobs), len(jobs)):
            gc.collect()
            wait()
            start = time.perf_counter()
            result = jobs[key]()
            wait()
            taken = time.perf_counter() - start
            del result
            if nth:
                seconds[key].append(taken)
        typer.echo(f"  round {nth} of {repeats}", err=True)
    return seconds


@dataclass(frozen=True)
class SingleRun:
    """Time and peak memory of one run of a contender; `peak_bytes` is None if it was not measured."""

    seconds: float
    peak_bytes: int | None


def single_run(lm: LoadedModel, texts: Sequence[str], name: str, memory: bool) -> SingleRun | None:
    """Run a contender once, and measure its time and the peak rise of memory; None if CUDA memory runs out.

    Raises:
        ToxlocError: the model is on a CPU, and the system cannot measure the peak memory of a part of a process.
    """
    list(batches(lm, texts))
    plain(lm, [min(texts, key=len)])  # loads the weights into memory and initialises the libraries
    gc.collect()
    _wait(lm)
    with PeakMemory(lm.device) as peak:
        if memory and lm.device.type != "cuda" and peak.resident_before is None:
            raise toxloc.ToxlocError(
                "Peak memory on a CPU is read from /proc of Linux, which this system does not allow; use --no-memory."
            )
        start = time.perf_counter()
        try:
            CONTENDERS[name](lm, texts)
        except torch.OutOfMemoryError:
            return None
        _wait(lm)
        seconds = time.perf_counter() - start
    return SingleRun(seconds, peak.rise if memory else None)


def in_process(name: str, count: int, setting: Setting, memory: bool = True) -> SingleRun | None:
    """Call `single_run` in a new process; None if memory runs out.

    Raises:
        ToxlocError: the process failed for another reason.
    """
    typer.echo(f"  separate process: {name}, {count} texts", err=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.speed",
            "--one",
            name,
            "--texts",
            str(count),
            *([] if memory else ["--no-memory"]),
            *setting.options(),
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode == -9:  # Linux kills a process when memory runs out
        return None
    if done.returncode:
        raise toxloc.ToxlocError(f"{name!r} could not be measured: {done.stderr.strip()[-2000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return SingleRun(**measured) if measured else None


def size(lm: LoadedModel, texts: Sequence[str]) -> dict[str, Any]:
    """Count texts, tokens, positions (including padding) and batches; average the batch width over the positions."""
    shapes = [(*batch.ids.shape, int(batch.mask.sum())) for batch in batches(lm, texts)]
    positions = sum(rows * width for rows, width, _ in shapes)
    tokens = sum(tokens for *_, tokens in shapes)
    return {
        "texts": len(texts),
        "tokens": tokens,
        "predicted": tokens - len(texts),
        "positions": positions,
        "batches": len(shapes),
        "mean_width": sum(rows * width**2 for rows, width, _ in shapes) / positions,
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    q25, median, q75 = (float(x) for x in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "q25": q25, "q75": q75}


def compare(
    lm: LoadedModel, setting: Setting, count: int, repeats: int, single_runs: Mapping[str, SingleRun | None]
) -> list[dict[str, Any]]:
    """Time all contenders on the same texts, except contenders that ran out of memory in `single_runs`."""
    texts = setting.texts(count)
    jobs = {
        name: partial(run, lm, texts) for name, run in CONTENDERS.items() if single_runs.get(name, True) is not None
    }
    seconds = interleaved(jobs, repeats, setting.seed, partial(_wait, lm))
    entries: list[dict[str, Any]] = []
    for name in CONTENDERS:
        run = single_runs.get(name)
        entry: dict[str, Any] = {
            "name": name,
            "seconds": None,
            "of_plain": None,
            "times": [],
            "peak_bytes": run.peak_bytes if run else None,
        }
        if name in seconds:
            ratios = [x / y for x, y in zip(seconds[name], seconds["plain"], strict=True)]
            entry |= {"seconds": quartiles(seconds[name]), "of_plain": quartiles(ratios), "times": seconds[name]}
        entries.append(entry)
    return entries


def _wait(lm: LoadedModel) -> None:
    if lm.device.type != "cpu":
        torch.accelerator.synchronize(lm.device)


def describe(lm: LoadedModel, setting: Setting) -> dict[str, Any]:
    """Return the model, the hardware and the versions of a measurement."""
    return {
        "model": lm.name,
        "device": str(lm.device),
        "processor": _processor(lm.device),
        "dtype": setting.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "toxloc": toxloc.__version__,
        "seed": setting.seed,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else None
    return f"{match[1] if match else platform.machine()}, {os.cpu_count()} cores"


def measure(setting: Setting, count: int, repeats: int, sizes: Sequence[int], memory: bool) -> dict[str, Any]:
    """Measure time, peak memory and, for every number of texts in `sizes`, growth.

    Separate processes run first, while this process has not loaded a model.
    """
    single_runs = {name: in_process(name, count, setting) for name in CONTENDERS} if memory else {}
    growing = {n: {name: in_process(name, n, setting, memory) for name in GROWING} for n in sizes}
    lm = setting.load()
    result = describe(lm, setting) | size(lm, setting.texts(count)) | {"repeats": repeats}
    typer.echo(f"  time: {count} texts", err=True)
    result["contenders"] = compare(lm, setting, count, repeats, single_runs)
    result["floor"] = floor(lm, result["mean_width"], result["predicted"] / result["positions"])
    if sizes:
        result["growth"] = [
            size(lm, setting.texts(n))
            | {"contenders": {name: asdict(run) if run else None for name, run in runs.items()}}
            for n, runs in growing.items()
        ]
    return result


# Showing


def title(result: Mapping[str, Any]) -> str:
    """Return the model, the hardware and the amount of text of a result in one line."""
    threads = f", {result['threads']} threads" if result["device"] == "cpu" else ""
    return (
        f"{result['model']} in {result['dtype']} on {result['device']} ({result['processor']}{threads}), "
        f"torch {result['torch']}; {result['texts']:,} texts, {result['tokens']:,} tokens in {result['batches']} "
        f"batches; {result['repeats']} rounds"
    )


def contender_rows(result: Mapping[str, Any]) -> Rows:
    """Return the head and the rows of the table of contenders."""
    head = ["contender", "seconds", "quartiles", "× plain", "floor", "peak MB"]
    body = []
    for entry in result["contenders"]:
        seconds, bound = entry["seconds"], result["floor"].get(entry["name"])
        body.append(
            [
                entry["name"],
                f"{seconds['median']:.3g}" if seconds else "does not fit",
                f"[{seconds['q25']:.3g}, {seconds['q75']:.3g}]" if seconds else "",
                f"{entry['of_plain']['median']:.2f}" if seconds else "",
                f"{bound:.2f}" if bound else "",
                _megabytes(entry["peak_bytes"]),
            ]
        )
    return head, body


def growth_rows(result: Mapping[str, Any]) -> Rows:
    """Return the head and the rows of the table of growth."""
    head = ["texts", "tokens", *GROWING]
    body = []
    for entry in result["growth"]:
        runs = [entry["contenders"][name] for name in GROWING]
        cells = [
            f"{run['seconds']:.3g} s, {_megabytes(run['peak_bytes'])} MB" if run else "does not fit" for run in runs
        ]
        body.append([f"{entry['texts']:,}", f"{entry['tokens']:,}", *cells])
    return head, body


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / MB:,.0f}"


def contenders_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for the documentation: the contenders, with columns for several models."""
    heads = {name: contender_rows(result)[0][1:] for name, result in results.items()}
    bodies = [contender_rows(result)[1] for result in results.values()]
    head = [
        "contender",
        *(
            f"{name}: {column}" if nth == 0 else column
            for name, columns in heads.items()
            for nth, column in enumerate(columns)
        ),
    ]
    return md.table(
        head,
        [[rows[0][0], *(cell for row in rows for cell in row[1:])] for rows in zip(*bodies, strict=True)],
        numbers=True,
    )


def growth_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for the documentation: time and memory by number of texts, with columns for several models."""
    head = [
        "texts",
        *(f"{name}: {column}" if nth == 0 else column for name in results for nth, column in enumerate(GROWING)),
    ]
    bodies = [growth_rows(result)[1] for result in results.values()]
    return md.table(
        head,
        [[rows[0][0], *(cell for row in rows for cell in row[2:])] for rows in zip(*bodies, strict=True)],
        numbers=True,
    )


def show(result: Mapping[str, Any]) -> None:
    """Print both tables."""
    console = Console()
    console.print(title(result), highlight=False)
    for name, rows in (("contenders", contender_rows), ("growth", growth_rows)):
        if name not in result:
            continue
        head, body = rows(result)
        table = Table()
        for nth, column in enumerate(head):
            table.add_column(column, justify="right" if nth else "left")
        for row in body:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print(table)


def main(
    model: Annotated[str, typer.Option(help="Model, as in `toxloc run`.")] = "toxloc-tiny",
    texts: Annotated[int, typer.Option(help="Number of texts for the comparison.", min=1)] = 200,
    repeats: Annotated[int, typer.Option(help="Number of rounds to count.", min=1)] = 7,
    sizes: Annotated[
        str, typer.Option(help="Numbers of texts to measure growth with, separated by commas.")
    ] = "100,1000,3000",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: CUDA if it is available.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed for the order of texts and of contenders.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to save to.", dir_okay=False)] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory.")] = True,
    growth: Annotated[bool, typer.Option(help="Measure growth with the number of texts.")] = True,
    contender: Annotated[
        str | None, typer.Option("--one", help="Measure one run of this contender and print it as JSON.", hidden=True)
    ] = None,
) -> None:
    """Compare the time and memory of localization's passes with a plain forward pass and with the alternatives."""
    setting = Setting(model, device, dtype, seed)
    if contender is not None:
        run = single_run(setting.load(), setting.texts(texts), contender, memory)
        print(json.dumps(run and asdict(run)))
        return
    counts = [int(count) for count in sizes.split(",")] if growth else []
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # fail before hours of work, not after them
    command = ["python", "-m", "benchmarks.speed", *setting.options(), "--texts", str(texts), "--repeats", str(repeats)]
    command += ["--sizes", sizes] if growth else ["--no-growth"]
    command += [] if memory else ["--no-memory"]
    result = {"command": shlex.join(command)} | measure(setting, texts, repeats, counts, memory)
    if out is not None:
        write_json(out, result)
    show(result)


if __name__ == "__main__":
    typer.run(main)
