"""Compare the speed of sampling with toxloc and with `hf.generate`, on the same prompts with the same decoding.

    python -m benchmarks.generation               # toxloc-tiny; --out generation.json saves it
    python -m benchmarks.generation --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts rtp.jsonl --max-prompts 20

The contenders are toxloc, a loop of `hf.generate` with `num_return_sequences` over the prompts, and a single call of
`hf.generate` with all prompts in one padded batch. Every round runs all three in a random order; ratios are taken
within a round. Tokens are counted up to and including the token that ends a text; tokens computed after it do not count
for any contender.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import markdown as md
from toxloc import LoadedModel, load_model, load_prompts
from toxloc.generation.decoding import Decoding
from toxloc.generation.generate import sample
from toxloc.models.batching import encode, filler, pad
from toxloc.support.files import write_json
from toxloc.texts.prompts import PROVOCATIVE

TOXLOC = "toxloc"
Contender = Callable[[LoadedModel, Sequence[str], int, int], int]


def with_toxloc(lm: LoadedModel, prompts: Sequence[str], samples: int, max_new_tokens: int) -> int:
    """Sample with toxloc, and return the number of tokens."""
    return sum(completion.n_tokens for completion in sample(lm, prompts, Decoding(samples, max_new_tokens)))


@torch.inference_mode()
def loop(lm: LoadedModel, prompts: Sequence[str], samples: int, max_new_tokens: int) -> int:
    """Call `hf.generate` once per prompt, and return the number of tokens."""
    return sum(_generated(lm, [row], samples, max_new_tokens) for row in encode(lm, prompts, lm.context))


@torch.inference_mode()
def one_batch(lm: LoadedModel, prompts: Sequence[str], samples: int, max_new_tokens: int) -> int:
    """Call `hf.generate` once for all prompts, and return the number of tokens."""
    return _generated(lm, encode(lm, prompts, lm.context), samples, max_new_tokens)


def _generated(lm: LoadedModel, rows: list[list[int]], samples: int, max_new_tokens: int) -> int:
    batch = pad(lm, rows, list(range(len(rows))), "left")
    written = lm.hf.generate(
        batch.ids,
        attention_mask=batch.mask,
        do_sample=True,
        top_p=0.9,
        top_k=0,
        num_return_sequences=samples,
        max_new_tokens=max_new_tokens,
        pad_token_id=filler(lm),
    )
    new = written[:, batch.ids.shape[1] :]
    eos = lm.hf.generation_config.eos_token_id
    ended = torch.isin(new, torch.tensor(eos, device=new.device)).long().cumsum(1)
    return int((ended.cumsum(1) <= 1).sum())


CONTENDERS: dict[str, Contender] = {
    TOXLOC: with_toxloc,
    "loop of hf.generate": loop,
    "one batch of hf.generate": one_batch,
}


def main(
    model: Annotated[str, typer.Option(help="Model, as in load_model.")] = "toxloc-tiny",
    prompts: Annotated[str, typer.Option(help="Prompts, as in toxloc run.")] = "builtin",
    max_prompts: Annotated[int, typer.Option(help="Maximum number of prompts.", min=1)] = 40,
    samples: Annotated[int, typer.Option(help="Completions per prompt.", min=1)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a completion.", min=1)] = 20,
    repeats: Annotated[int, typer.Option(help="Rounds to count, after a warm-up round.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Seed for the choice of prompts and the order of contenders.", min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="Device, as in load_model.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the contenders, print the comparison and save it."""
    loaded = load_prompts(prompts)
    texts = (loaded.only(PROVOCATIVE) or loaded).limited(max_prompts, seed).texts
    lm = load_model(model, device=device)
    rounds: list[dict[str, dict[str, float]]] = []
    shuffle = random.Random(seed)
    for nth in range(repeats + 1):
        timed = {}
        for name in shuffle.sample(list(CONTENDERS), len(CONTENDERS)):
            began = time.perf_counter()
            tokens = CONTENDERS[name](lm, texts, samples, max_new_tokens)
            if lm.device.type == "cuda":
                torch.cuda.synchronize(lm.device)
            timed[name] = {"seconds": time.perf_counter() - began, "tokens": tokens}
        if nth:
            rounds.append(timed)
            print(
                f"round {nth}: " + ", ".join(f"{name} {run['seconds']:.1f} s" for name, run in timed.items()),
                flush=True,
            )
    result = {
        "model": lm.name,
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "prompts": len(texts),
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "contenders": summarised(rounds),
        "rounds": rounds,
    }
    show(result)
    if out is not None:
        write_json(out, result)


def summarised(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the median tokens per second of each contender, and how many times as fast toxloc is: median and range."""
    rates = [{name: run["tokens"] / run["seconds"] for name, run in timed.items()} for timed in rounds]
    summary = {}
    for name in CONTENDERS:
        ratios = [rate[TOXLOC] / rate[name] for rate in rates]
        summary[name] = {
            "tokens_per_second": statistics.median(rate[name] for rate in rates),
            "toxloc_is_faster_by": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
    return summary


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a table for the documentation: tokens per second, with one column per model."""
    rows = [
        [
            name,
            *(
                f"{contender['tokens_per_second']:,.0f}"
                + ("" if name == TOXLOC else f" (toxloc {contender['toxloc_is_faster_by']:.2f} × as fast)")
                for contender in (result["contenders"][name] for result in results.values())
            ),
        ]
        for name in CONTENDERS
    ]
    return md.table(
        ["", *(f"{name}, {result['prompts']} prompts" for name, result in results.items())], rows, numbers=True
    )


def show(result: dict[str, Any]) -> None:
    """Print one row per contender."""
    table = Table(
        "",
        "tokens per second",
        "toxloc is faster by",
        title=f"{result['model']} on {result['device']}, {result['threads']} threads: {result['prompts']} "
        f"prompts × {result['samples']} × {result['max_new_tokens']} tokens",
    )
    for name, contender in result["contenders"].items():
        low, high = contender["range"]
        table.add_row(
            name,
            f"{contender['tokens_per_second']:.0f}",
            "" if name == TOXLOC else f"{contender['toxloc_is_faster_by']:.2f} × [{low:.2f}, {high:.2f}]",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
