"""Localize and edit a model that is larger than the memory that the process may use.

    python -m benchmarks.memory_limit --texts 12                  # prints; --out memory-limit.json saves it
    python -m benchmarks.memory_limit --model qwen2.5-coder-1.5b --limit 6 --texts 24 --dtype bfloat16 --memory 8e8
    python -m benchmarks.memory_limit --model qwen2.5-coder-1.5b --limit 12 --no-offload --texts 24 --memory 2e9

The process is put into a control group of Linux with a memory limit. The group counts everything that the process uses:
its own memory and the pages of files that it reads, such as mapped weights. The kernel drops pages of files when the
limit is reached, and ends the process if that is not enough. Making a group needs the right to write in
/sys/fs/cgroup, which root has in most containers.

In the group, the model is loaded with `offload=True`, every layer is localized by attribution, TRNE is fitted to every
layer within a rise of perplexity of 1%, applied, reverted and saved as an adapter, and completions are sampled and
judged before and after. The same is then tried with `offload=False`.

* own: largest memory of the process that is not backed by files (`RssAnon`), sampled every 20 ms. It contains the
  statistics, the activations, the changed weights, Python and torch.
* group: largest memory that the group counted, pages of files included; it reaches the limit if the files are larger.

Without `--model`, a random model in the architecture of Llama is built in a temporary folder; its figures say nothing
about toxicity. 1 GB is 10^9 bytes.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import markdown as md

GB = 10**9
STATUS = Path("/proc/self/status")
GROUPS = Path("/sys/fs/cgroup")
PROMPTS = 10
STEPS = {
    "load": "load",
    "localize": "localize",
    "fit": "fit TRNE",
    "evaluate": "evaluate twice",
    "apply": "apply, read a text",
    "revert": "revert, compare bits",
    "export": "save adapter",
}


class MemoryGroup:
    """A control group with a memory limit, inside that of this process, of version 1 or 2.

    Attributes:
        folder: the folder of the group.
    """

    def __init__(self, limit: int):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        first = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
        self._is_first_version = first is not None
        if first is not None:
            parent = GROUPS / "memory" / first.lstrip("/")
        else:
            parent = GROUPS / next(path for number, _, path in lines if number == "0").lstrip("/")
        self.folder = parent / f"toxloc-{os.getpid()}"
        self.folder.mkdir()
        names = {True: ("memory.limit_in_bytes", "memory.max_usage_in_bytes"), False: ("memory.max", "memory.peak")}
        name, self._peak = names[self._is_first_version]
        try:
            (self.folder / name).write_text(str(limit))
        except OSError:
            self.close()
            raise

    def join(self) -> None:
        """Put the calling process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak(self) -> int:
        """The largest memory that the group has counted, in bytes."""
        return int((self.folder / self._peak).read_text())

    def close(self) -> None:
        """Remove the group, whose processes must have ended."""
        for _ in range(100):
            try:
                self.folder.rmdir()
                return
            except OSError:  # the kernel has not finished with the last process
                time.sleep(0.1)


class OwnMemory(threading.Thread):
    """Samples the memory of this process that is not backed by files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.sample()
            time.sleep(0.02)

    def sample(self) -> None:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
        self.peak = max(self.peak, 1024 * int(line.split()[1]))


def build(folder: Path, gigabytes: float) -> None:
    """Save a random model of about this size, block by block in memory, and the tokenizer of toxloc-tiny."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from toxloc.models.sources import BUILT_IN

    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN["toxloc-tiny"])
    width, d_mlp = 1536, 4096
    per_block = 4 * (4 * width**2 + 3 * width * d_mlp)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=d_mlp,
        num_attention_heads=12,
        num_key_value_heads=12,
        num_hidden_layers=max(1, round(gigabytes * GB / per_block)),
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def work(model: str, texts: int, memory: int, offload: bool, dtype: str, out: Path) -> None:
    """Do all steps in this process, and write their times and the own memory after each step to a file."""
    own = OwnMemory()
    own.start()
    import torch

    import toxloc
    from toxloc.interventions.evidence import Evidence
    from toxloc.interventions.export import export_peft

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    result: dict[str, Any] = {"steps": {}}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        own.peak, start = 0, time.perf_counter()
        yield
        own.sample()
        result["steps"][name] = {"seconds": time.perf_counter() - start, "own_bytes": own.peak}
        out.write_text(json.dumps(result))

    own.sample()
    result["own_bytes_before"] = own.peak
    pairs, everyday = toxloc.load_contrast().limited(texts), toxloc.load_neutral()
    everyday = toxloc.NeutralText(everyday.fit[:texts], everyday.tune[:texts], everyday.check[:texts])
    with step("load"):
        lm = toxloc.load_model(model, device="cpu", offload=offload, dtype=dtype)
    result |= {
        "name": lm.name,
        "n_layers": lm.n_layers,
        "d_model": lm.d_model,
        "d_mlp": lm.d_mlp,
        "bytes": sum(p.nbytes for p in lm.hf.parameters()),
        "W_out_bytes": sum(lm.W_out(site).nbytes for site in lm.sites("mlp")),
    }
    with step("localize"):
        loc = toxloc.localize(lm, pairs, ("attribution",), memory=memory)
    assert loc.layer_scores("attribution").shape == (lm.n_layers,)
    with step("fit"):
        evidence = Evidence(lm, pairs, everyday, memory=memory)
        edit = toxloc.TRNE.fit(lm, pairs, evidence=evidence)
    del evidence
    result |= {"edited": len(edit.edits), "ratio": edit.record["tuned_perplexity_ratio"]}
    prompts = toxloc.load_prompts().limited(PROMPTS)
    with step("evaluate"):
        evaluations = [toxloc.evaluate(lm, prompts, samples=1, fluency=False, chat="off")]
        with edit.applied(lm):
            evaluations.append(toxloc.evaluate(lm, prompts, samples=1, fluency=False, chat="off"))
    result["toxic"] = [evaluation.toxicity["any"].rate for evaluation in evaluations]
    ids = torch.tensor([lm.tokenizer(everyday.tune[0])["input_ids"][:32]])
    with torch.inference_mode():
        before = lm.hf(ids).logits
        with step("apply"):
            edit.apply(lm)
            assert not torch.equal(lm.hf(ids).logits, before)
        with step("revert"):
            edit.revert(lm)
            assert lm.current_fingerprint() == lm.fingerprint
            assert torch.equal(lm.hf(ids).logits, before)
    with tempfile.TemporaryDirectory() as folder, step("export"):
        export_peft(edit, lm, Path(folder) / "adapter")


def run(model: str, texts: int, memory: int, offload: bool, dtype: str, limit: int) -> dict[str, Any]:
    """Do all steps in a new process within the limit; return what it measured and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        out, group = Path(folder) / "result.json", MemoryGroup(limit)
        settings = ["--model", model, "--texts", str(texts), "--memory", str(memory), "--dtype", dtype]
        settings += ["--work", str(out), "--offload" if offload else "--no-offload"]
        command = [sys.executable, "-m", "benchmarks.memory_limit", *settings]
        try:
            code = subprocess.run(command, preexec_fn=group.join, check=False).returncode
            result: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"steps": {}}
            result["group_bytes"] = group.peak
        finally:
            group.close()
    ended = {0: "finished", -signal.SIGKILL: "ended by the kernel: not enough memory"}
    return {**result, "offload": offload, "dtype": dtype, "end": ended.get(code, f"failed with exit code {code}")}


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a table: one row per run."""
    rows = []
    for setting in result["settings"]:
        size = max(run.get("bytes", 0) for run in setting["runs"])
        for run in setting["runs"]:
            steps = run["steps"]
            cells = [
                f"{steps[name]['seconds']:,.0f} s{md.SIDE_BY_SIDE}{steps[name]['own_bytes'] / GB:.1f}"
                if name in steps
                else "–"
                for name in STEPS
            ]
            where = "on the disk" if run["offload"] else "in memory"
            rows.append(
                [
                    setting["model"],
                    f"{run.get('bytes', size) / GB:.1f}, {run['dtype']}, {where}",
                    f"{setting['limit'] / GB:g}",
                    *cells,
                    run["end"],
                ]
            )
    return md.table(["model", "weights, GB", "limit, GB", *STEPS.values(), "end"], rows)


def main(
    model: Annotated[str, typer.Option(help="Model to load; default: a random model.")] = "",
    gigabytes: Annotated[float, typer.Option(help="Size of the random model.")] = 3.0,
    limit: Annotated[float, typer.Option(help="Memory limit in GB.")] = 2.0,
    memory: Annotated[float, typer.Option(help="Bytes that the statistics of a group of layers may take.")] = 1 << 28,
    texts: Annotated[int, typer.Option(help="Contrast texts of each side, and everyday texts of each part.")] = 40,
    dtype: Annotated[str, typer.Option(help="Type of the weights, as in load_model.")] = "float32",
    offload: Annotated[bool, typer.Option(help="Keep the weights on the disk.")] = True,
    compare: Annotated[bool, typer.Option(help="After a run with weights on the disk, try it without.")] = True,
    inside: Annotated[Path | None, typer.Option("--work", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(help="Save the result here; other settings in the file stay.")] = None,
) -> None:
    """Localize and edit a model within a memory limit."""
    if inside is not None:
        work(model, texts, int(memory), offload, dtype, inside)
        return
    ways = [True, False] if offload and compare else [offload]
    with tempfile.TemporaryDirectory() as folder:
        if not model:
            build(Path(folder), gigabytes)
        runs = [run(model or folder, texts, int(memory), way, dtype, int(limit * GB)) for way in ways]
    setting = {
        "model": model or "random, Llama's architecture",
        "limit": int(limit * GB),
        "memory": int(memory),
        "texts": texts,
        "threads": os.environ.get("OMP_NUM_THREADS", "1"),
        "processor": platform.processor() or platform.machine(),
        "runs": runs,
    }
    print(json.dumps(setting, indent=2))
    if out is not None:
        known = json.loads(out.read_text()) if out.is_file() else {"settings": []}
        out.write_text(
            json.dumps(
                {"settings": [*(old for old in known["settings"] if _key(old) != _key(setting)), setting]}, indent=1
            )
            + "\n"
        )


def _key(setting: dict[str, Any]) -> tuple[Any, ...]:
    run = setting["runs"][0]
    return setting["model"], setting["limit"], run["dtype"], run["offload"]


if __name__ == "__main__":
    typer.run(main)
