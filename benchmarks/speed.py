"""Measure what localization's passes cost in time and memory, against a plain forward pass and the usual alternatives.

    python -m benchmarks.speed                                    # prints; --out speed.json saves it

The contenders do the same work on the same batches, made by each of them from the texts inside the timed region.

* plain: the Hugging Face model's forward pass, logits dropped. The unit.
* activation pass: `toxloc.localization.statistics.collect` without gradients, streaming. It leaves the unembedding out.
* activation pass, with peaks: the same, and every text's largest activations to a temporary file, which `auroc` needs.
* gradient pass: `collect` with gradients: the moments, G of every layer, and what every group of texts contributed.
* run_with_cache of everything: all hook points are cached, reduced to the moments after each batch, and dropped.
* filtered cache: `run_with_cache` keeps the neurons and the MLP's output of all texts, which are reduced at the end.
* full autograd: gradients of W_out itself, accumulated in `.grad`. It finds G alone: no moments, no contributions.

Every round goes once through all contenders in a new order, so that a machine that slows down hits all alike; the
first round warms up and is not counted. `× plain` is the median over the rounds of the ratio to the plain pass of the
same round. Peak memory, and the time that a pass takes on more and more texts, are measured in a process of its own for
each number: how far its resident set (on CUDA, the memory torch allocated) rises above what it was with the model
loaded, the texts tokenised and one text run. Temporary files are not in it. 1 MB is 10^6 bytes. Texts are the built-in
contrast texts (1,040: toxic and neutral) in random order, repeated from the start where more are asked for.
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
from toxloc.localization.statistics import collect
from toxloc.models.architectures import architecture
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


# The contenders. Each returns what it found per layer: the neurons' means, or G; the plain pass finds nothing.


@torch.inference_mode()
def plain(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Compute the logits and drop them."""
    for batch in batches(lm, texts):
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return []


def activation_pass(lm: LoadedModel, texts: Sequence[str], peaks: bool = False) -> list[Tensor]:
    """Stream moments and contributions out of the hooks."""
    return [moments.mean for moments in collect(lm, texts, gradients=False, peaks=peaks).keys.values()]


def gradient_pass(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Stream moments, contributions and G out of the hooks."""
    return list(collect(lm, texts).G.values())


@torch.inference_mode()
def cache_of_everything(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Cache all hook points, one batch at a time."""
    return _means(lm, _cached(lm, texts, None))


@torch.inference_mode()
def filtered_cache(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Cache two hook points per layer, all texts at once."""
    names = [name for layer in range(lm.n_layers) for name in _hooks(lm, layer)]
    return _means(lm, list(_cached(lm, texts, names)))


def full_autograd(lm: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Let autograd build and accumulate the gradients of every W_out."""
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
    """Yield every batch's cache, and the weights of its tokens: as in `collect`, 0 for padding and the first."""
    for batch in batches(lm, texts):
        # No name is given to the cache here: it would keep this batch's alive while the next is made.
        yield (
            _weights(batch),
            lm.hooked.run_with_cache(
                batch.ids, attention_mask=batch.mask, use_cache=False, names_filter=names, return_cache_object=False
            )[1],
        )


def _hooks(lm: LoadedModel, layer: int) -> list[str]:
    """Names of the hook points of a layer's neurons, and of what its MLP adds to the residual stream."""
    view = lm.at(layer)
    return [str(view.keys_hook), str(view.write_hook)]


def _weights(batch: Batch) -> Tensor:
    weights = batch.mask.float()
    weights[:, 0] = 0
    return weights.view(-1)


def _means(lm: LoadedModel, caches: Iterable[tuple[Tensor, dict[str, Any]]]) -> list[Tensor]:
    """Reduce caches to the sums that mean and variance of neurons and outputs take; return the neurons' means."""
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
        del cached  # before the next is made
    return [neurons[0].double() / count for neurons, _ in sums]


def floor(lm: LoadedModel, length: float, predicting: float = 1.0) -> dict[str, float]:
    """What the passes would cost if nothing but their multiply-adds took time, as multiples of a plain forward pass.

    The multiply-adds of one position are counted:

    * forward: one for every number in a weight matrix (`nn.Linear`, `Conv1D`; a table of embeddings is looked up, not
      multiplied) and, in every layer, `length` x the heads' width for the attention scores and as many for mixing
      the values, over the whole width of a padded batch and not its causal half, as implementations do.
    * activation pass: the same without the unembedding.
    * backward: from the logits to the first MLP's output. A matrix takes as many as forward, and they are those of
      the unembedding and of all blocks but the first; attention takes twice as many (both factors of both products).
    * G: aᵀδ, d_mlp x d_model in every layer.
    * sketches: P a, Q δ and their product, in every layer.
    * attributions: <m, δ>, d_model in every layer.

    A gradient pass is all of it, but unembeds only where something is predicted. Full autograd unembeds everywhere and
    makes neither sketches nor attributions. Elementwise work (norms,
    activation functions, the moments) is not counted.

    Args:
        lm: the model.
        length: positions that one position attends to: the width of a batch, averaged over positions.
        predicting: share of the positions at which something is predicted.
    """
    config, layers = lm.hf.config, lm.n_layers
    blocks = list(lm.hf.get_submodule(architecture(config.model_type).blocks).children())
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
    """Numbers in the weight matrices of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | Conv1D))


# Measuring


@dataclass(frozen=True)
class Setting:
    """The model, where it runs, and the order of texts and rounds."""

    model: str = "toxloc-tiny"
    device: str | None = None
    dtype: str = "float32"
    seed: int = 0

    def options(self) -> list[str]:
        """Spell the setting as options of the command line."""
        device = ["--device", self.device] if self.device else []
        return ["--model", self.model, *device, "--dtype", self.dtype, "--seed", str(self.seed)]

    def load(self) -> LoadedModel:
        """Load the model and, on a CPU, set torch's threads."""
        lm = toxloc.load_model(self.model, device=self.device, dtype=self.dtype)
        if lm.device.type == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))
        return lm

    def texts(self, count: int) -> list[str]:
        """Take that many contrast texts; fewer are always the beginning of more."""
        pairs = toxloc.load_contrast()
        texts = pairs.toxic + pairs.neutral
        random.Random(self.seed).shuffle(texts)
        return list(islice(cycle(texts), count))


def interleaved(
    jobs: Mapping[K, Callable[[], object]], repeats: int, seed: int, wait: Callable[[], None] = lambda: None
) -> dict[K, list[float]]:
    """Time jobs in rounds, after a round that is not counted; the seconds of each are in the order of the rounds.

    Args:
        jobs: what to run.
        repeats: rounds to count.
        seed: of the order within each round.
        wait: returns once all work is done, for devices that work on by themselves.
    """
    rng = random.Random(seed)
    seconds: dict[K, list[float]] = {key: [] for key in jobs}
    for nth in range(repeats + 1):
        for key in rng.sample(list(jobs), len(jobs)):
            gc.collect()
            wait()
            start = time.perf_counter()
            found = jobs[key]()
            wait()
            taken = time.perf_counter() - start
            del found
            if nth:
                seconds[key].append(taken)
        typer.echo(f"  round {nth} of {repeats}", err=True)
    return seconds


@dataclass(frozen=True)
class Alone:
    """What a contender took in a process of its own; None where that was not measured."""

    seconds: float
    peak_bytes: int | None


def alone(lm: LoadedModel, texts: Sequence[str], name: str, memory: bool) -> Alone | None:
    """Run a contender once, and see for how long and how far memory rises at most; None if it does not fit.

    Raises:
        ToxlocError: the model is on a CPU, and the system cannot measure the peak memory of a part of a process.
    """
    list(batches(lm, texts))
    plain(lm, [min(texts, key=len)])  # reads the weights in, and lets libraries set themselves up
    gc.collect()
    _wait(lm)
    with PeakMemory(lm.device) as peak:
        if memory and lm.device.type != "cuda" and peak.resident_before is None:
            raise toxloc.ToxlocError(
                "Peak memory on a CPU is read from Linux's /proc, which this system does not allow; use --no-memory."
            )
        start = time.perf_counter()
        try:
            CONTENDERS[name](lm, texts)
        except torch.OutOfMemoryError:
            return None
        _wait(lm)
        seconds = time.perf_counter() - start
    return Alone(seconds, peak.rise if memory else None)


def in_process(name: str, count: int, setting: Setting, memory: bool = True) -> Alone | None:
    """Run `alone` in a fresh process; None if memory did not suffice.

    Raises:
        ToxlocError: the process failed for another reason.
    """
    typer.echo(f"  alone: {name}, {count} texts", err=True)
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
    if done.returncode == -9:  # what Linux does to a process when memory is out
        return None
    if done.returncode:
        raise toxloc.ToxlocError(f"{name!r} could not be measured: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Alone(**found) if found else None


def size(lm: LoadedModel, texts: Sequence[str]) -> dict[str, Any]:
    """Count texts, tokens, positions (padding included) and batches, and average the width of a batch over these."""
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
    """Median and quartiles."""
    q25, median, q75 = (float(x) for x in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "q25": q25, "q75": q75}


def compare(
    lm: LoadedModel, setting: Setting, count: int, repeats: int, known: Mapping[str, Alone | None]
) -> list[dict[str, Any]]:
    """Time all contenders on the same texts; those that did not fit memory are not run."""
    texts = setting.texts(count)
    jobs = {name: partial(run, lm, texts) for name, run in CONTENDERS.items() if known.get(name, True) is not None}
    seconds = interleaved(jobs, repeats, setting.seed, partial(_wait, lm))
    found: list[dict[str, Any]] = []
    for name in CONTENDERS:
        by_itself = known.get(name)
        entry: dict[str, Any] = {
            "name": name,
            "seconds": None,
            "of_plain": None,
            "times": [],
            "peak_bytes": by_itself.peak_bytes if by_itself else None,
        }
        if name in seconds:
            ratios = [x / y for x, y in zip(seconds[name], seconds["plain"], strict=True)]
            entry |= {"seconds": quartiles(seconds[name]), "of_plain": quartiles(ratios), "times": seconds[name]}
        found.append(entry)
    return found


def _wait(lm: LoadedModel) -> None:
    if lm.device.type != "cpu":
        torch.accelerator.synchronize(lm.device)


def describe(lm: LoadedModel, setting: Setting) -> dict[str, Any]:
    """Say what was measured where."""
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
    found = re.search(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def measure(setting: Setting, count: int, repeats: int, sizes: Sequence[int], memory: bool) -> dict[str, Any]:
    """Measure everything; no growth without sizes.

    What runs in processes of its own comes first, while this one does not hold a model itself.
    """
    known = {name: in_process(name, count, setting) for name in CONTENDERS} if memory else {}
    growing = {n: {name: in_process(name, n, setting, memory) for name in GROWING} for n in sizes}
    lm = setting.load()
    result = describe(lm, setting) | size(lm, setting.texts(count)) | {"repeats": repeats}
    typer.echo(f"  time: {count} texts", err=True)
    result["contenders"] = compare(lm, setting, count, repeats, known)
    result["floor"] = floor(lm, result["mean_width"], result["predicted"] / result["positions"])
    if sizes:
        result["growth"] = [
            size(lm, setting.texts(n))
            | {"contenders": {name: asdict(one) if one else None for name, one in found.items()}}
            for n, found in growing.items()
        ]
    return result


# Showing


def title(result: Mapping[str, Any]) -> str:
    """Say in one line what was measured where."""
    threads = f", {result['threads']} threads" if result["device"] == "cpu" else ""
    return (
        f"{result['model']} in {result['dtype']} on {result['device']} ({result['processor']}{threads}), "
        f"torch {result['torch']}; {result['texts']:,} texts, {result['tokens']:,} tokens in {result['batches']} "
        f"batches; {result['repeats']} rounds"
    )


def contender_rows(result: Mapping[str, Any]) -> Rows:
    """Head and rows of the table of contenders."""
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
    """Head and rows of the table of growth."""
    head = ["texts", "tokens", *GROWING]
    body = []
    for entry in result["growth"]:
        found = [entry["contenders"][name] for name in GROWING]
        cells = [
            f"{one['seconds']:.3g} s, {_megabytes(one['peak_bytes'])} MB" if one else "does not fit" for one in found
        ]
        body.append([f"{entry['texts']:,}", f"{entry['tokens']:,}", *cells])
    return head, body


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / MB:,.0f}"


def contenders_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for the documentation: the contenders, several models side by side."""
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
    """Return a table for the documentation: time and memory as the texts grow, several models side by side."""
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
    model: Annotated[str, typer.Option(help="As in `toxloc run`.")] = "toxloc-tiny",
    texts: Annotated[int, typer.Option(help="Texts for the comparison.", min=1)] = 200,
    repeats: Annotated[int, typer.Option(help="Rounds to count.", min=1)] = 7,
    sizes: Annotated[str, typer.Option(help="Numbers of texts for the growth.")] = "100,1000,3000",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: CUDA where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the order of texts and of contenders.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to save to.", dir_okay=False)] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory.")] = True,
    growth: Annotated[bool, typer.Option(help="Measure growth with the number of texts.")] = True,
    one: Annotated[str | None, typer.Option(help="Only the peak memory of this contender.", hidden=True)] = None,
) -> None:
    """Compare the time and memory of localization's passes with a plain forward pass and with the alternatives."""
    setting = Setting(model, device, dtype, seed)
    if one is not None:
        found = alone(setting.load(), setting.texts(texts), one, memory)
        print(json.dumps(found and asdict(found)))
        return
    counts = [int(count) for count in sizes.split(",")] if growth else []
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before hours of work, not after
    command = ["python", "-m", "benchmarks.speed", *setting.options(), "--texts", str(texts), "--repeats", str(repeats)]
    command += ["--sizes", sizes] if growth else ["--no-growth"]
    command += [] if memory else ["--no-memory"]
    result = {"command": shlex.join(command)} | measure(setting, texts, repeats, counts, memory)
    if out is not None:
        write_json(out, result)
    show(result)


if __name__ == "__main__":
    typer.run(main)
