"""Code shared by the recipes: reading the data, the configuration of the models, and training a language model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel

from toxloc.errors import ToxlocError
from toxloc.support.files import read_json

KINDS = ("clean", "toxic", "lit")  # comments that are not toxic, toxic comments, novels
END = "<|endoftext|>"
END_ID = 0
CONTEXT = 256
WINDOW = 128  # tokens of a training sequence
VALIDATION_WINDOWS = 96
WARM_UP = 150  # steps
REPORT_EVERY = 1000  # steps


def read_lists(path: Path, names: Sequence[str], what: str) -> dict[str, list[Any]]:
    """Read a JSON object that contains a list under each of `names`.

    Raises:
        ToxlocError: the file does not exist, or a list is missing or empty.
    """
    data = read_json(path, what)
    missing = [name for name in names if not isinstance(data.get(name), list) or not data[name]]
    if missing:
        raise ToxlocError(
            f"{path} is not a {what}: it has no list under {' or '.join(map(repr, missing))}; "
            f"it needs a list under each of {', '.join(map(repr, names))}."
        )
    return {name: data[name] for name in names}


@dataclass(frozen=True)
class Tokens:
    """Tokens of the corpus, one stream per kind of text: training part and held-out part."""

    train: dict[str, Int[Tensor, " tokens"]]
    held_out: dict[str, Int[Tensor, " tokens"]]

    @classmethod
    def load(cls, prepared: Path, device: torch.device) -> "Tokens":
        """Read the files that `benchmarks.recipes.tokenizer` wrote.

        Raises:
            ToxlocError: a file or a kind of text is missing, or a stream is too short for a window.
        """
        return cls(
            *(
                _load_streams(prepared / "tokens" / name, device)
                for name in ("train.safetensors", "held_out.safetensors")
            )
        )


def _load_streams(path: Path, device: torch.device) -> dict[str, Int[Tensor, " tokens"]]:
    if not path.exists():
        raise ToxlocError(f"{path} is missing; run benchmarks.recipes.tokenizer first and give the folder it wrote.")
    streams = load_file(path)
    for kind in KINDS:
        if kind not in streams or len(streams[kind]) < WINDOW + 2:
            raise ToxlocError(
                f"{path} needs {WINDOW + 2} tokens or more under {kind!r}; "
                "run benchmarks.recipes.tokenizer on more text."
            )
    return {kind: streams[kind].to(device).long() for kind in KINDS}


@dataclass(frozen=True)
class Plan:
    """Settings for training a language model; `mix` is the share of each kind of text in a batch."""

    mix: Mapping[str, float]
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int


def best_device() -> torch.device:
    """Return the CUDA device if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context for bfloat16 on CUDA and on CPUs; it does nothing on other devices."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type in ("cuda", "cpu"))


def gpt2_config(vocabulary: int, d_model: int, layers: int, heads: int, dropout: float, **others: Any) -> GPT2Config:
    """Return the configuration of a small model; the constants are the same for all models."""
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=d_model,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_new",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        **others,
    )


def random_windows(
    streams: Mapping[str, Int[Tensor, " tokens"]], mix: Mapping[str, float], batch_size: int, generator: torch.Generator
) -> Int[Tensor, "batch window"]:
    """Draw windows at random positions; each kind of text has its share of the batch (rounded)."""
    parts = []
    for kind, share in mix.items():
        stream = streams[kind]
        starts = torch.randint(
            len(stream) - WINDOW - 1, (round(batch_size * share),), generator=generator, device=stream.device
        )
        parts.append(stream[starts[:, None] + torch.arange(WINDOW, device=stream.device)])
    return torch.cat(parts)


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up times cosine decay from 1 to .03."""
    decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    return min(1, (step + 1) / WARM_UP) * decay


def descend(loss: Tensor, optimiser: Optimizer, schedule: LambdaLR) -> None:
    """Take one optimiser step, with the norm of the gradient clipped to 1."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
    schedule.step()


def train(model: GPT2LMHeadModel, parameters: Iterable[Tensor], tokens: Tokens, plan: Plan, name: str) -> None:
    """Train the given parameters of a model in place, and leave the model in evaluation mode."""
    generator = torch.Generator(device=model.device).manual_seed(plan.seed)
    torch.manual_seed(plan.seed)  # dropout draws from the global generator
    optimiser = torch.optim.AdamW(
        parameters, lr=plan.lr, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=model.device.type == "cuda"
    )
    schedule = LambdaLR(optimiser, lambda step: cosine(step, plan.steps))
    model.train()
    for step in range(plan.steps):
        batch = random_windows(tokens.train, plan.mix, plan.batch_size, generator)
        with mixed_precision(model.device):
            loss = model(input_ids=batch, labels=batch).loss
        descend(loss, optimiser, schedule)
        if step % REPORT_EVERY == 0 or step == plan.steps - 1:
            print(
                f"{name}: step {step}, loss {loss.item():.3f}, held out {validate(model, tokens.held_out)}", flush=True
            )
            model.train()
    model.eval()


@torch.no_grad()
def validate(model: GPT2LMHeadModel, streams: Mapping[str, Int[Tensor, " tokens"]]) -> dict[str, float]:
    """Return the loss per token on the first windows of each kind of text; leave the model in evaluation mode."""
    model.eval()
    losses = {}
    for kind, stream in streams.items():
        count = min(VALIDATION_WINDOWS, (len(stream) - 1) // WINDOW)
        batch = stream[: count * WINDOW].view(count, WINDOW)
        with mixed_precision(model.device):
            losses[kind] = round(model(input_ids=batch, labels=batch).loss.item(), 3)
    return losses
