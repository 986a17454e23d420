"""Find the blocks of a Hugging Face model, and the maps in each block that write to the residual stream.

Nothing is looked up by family: a pass over a few tokens records which modules run, in which order and on which tensors.
In every child of a block, the last linear map into the residual stream is the map that writes. A norm that reads
exactly what such a child returns lies between the map and the residual stream.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ToxlocError
from .banks import layout_of

N_TOKENS = 6  # length of the text that is read to find the structure
# Patterns for the name and the class of a child of a block.
ATTENTION = re.compile(r"[Aa]ttention|[Aa]ttn")
MIXER = re.compile(r"[Mm]amba|SSM|DeltaNet|linear_attn|LinearAttention|Lightning|ShortConv|RecurrentBlock|RwkvSelf")
NO_WRITER = re.compile(r"norm|altup|laurel|router|rotary|per_layer|dropout")
SHARED = re.compile(r"shared")
# Families in which the last linear map of a child is not the map that writes: the map, or None for no map.
EXCEPTIONS: dict[str, dict[str, str | None]] = {
    "rwkv": {"feed_forward": "value"},  # a gate, the last map, multiplies what `value` returns
    "zamba2": {"shared_transformer": None, "linear": None},  # they feed the mixer, not the residual stream
}


@dataclass(frozen=True)
class Writer:
    """A map in a block that writes to the residual stream.

    Attributes:
        part: "mlp", "attention", "mixer" or "shared_expert"; "expert" for a module that holds several experts.
        path: path in the model of the linear map, or of the module that holds the experts.
        norm: path in the model of the norm between the map and the residual stream; None if there is no such norm. A
            norm after the sum of all experts is that of the experts' module.
        readers: paths in the model of the linear maps through which an MLP reads the residual stream: up, or gate and
            up; a single map may hold both.
        container: path in the model of the module that the map belongs to, such as the attention.
    """

    part: str
    path: str
    norm: str | None
    readers: tuple[str, ...]
    container: str


@dataclass(frozen=True)
class Structure:
    """The parts of a model.

    Attributes:
        blocks: path in the model of each block.
        writers: the maps that write to the residual stream, of each block.
        final_norm: path in the model of the norm between the last block and the unembedding; None if there is none.
        decoder: path in the model of the module that returns the last hidden states.
        head: path in the model of a module between the decoder and the unembedding; None if there is none.
        logit_scale: factor between what the unembedding returns and the logits, before a soft cap.
        soft_cap: the c of soft-capped logits c * tanh(logits / c), as in Gemma 2; None if there is no cap.
    """

    blocks: tuple[str, ...]
    writers: tuple[tuple[Writer, ...], ...]
    final_norm: str | None
    decoder: str
    head: str | None
    logit_scale: float
    soft_cap: float | None


@dataclass(frozen=True)
class _Call:
    """A module that ran: its path, the first tensor that it read, and the first tensor that it returned."""

    path: str
    module: nn.Module
    read: Tensor | None
    wrote: Tensor | None


def text_config(model: Any) -> Any:
    """Return the configuration of a model's text decoder: its own, or a part of it for a multimodal model."""
    return model.config.get_text_config()


def d_model_of(model: Any) -> int:
    """Return the width of the residual stream of a model's text decoder."""
    width = getattr(text_config(model), "hidden_size", None)
    return int(width or model.get_input_embeddings().weight.shape[1])


def find_structure(model: Any) -> Structure:
    """Find the blocks and the writing maps of a decoder-only model with one pass over a few tokens.

    Args:
        model: a Hugging Face causal language model, or a multimodal model with such a text decoder.

    Raises:
        ToxlocError: the model has no list of blocks, a block runs more than once, no map in the blocks writes to the
            residual stream, or the logits are not those of the unembedding.
    """
    blocks = _block_paths(model)
    calls = _trace(model)
    runs = sum(call.path == blocks[0] for call in calls)
    if runs != 1:
        raise ToxlocError(
            f"The first block of this {model.config.model_type} model runs {runs} times in one pass; toxloc needs "
            "blocks that run once, one after another."
        )
    writers = tuple(tuple(_writers(model, block, calls)) for block in blocks)
    if not any(writers):
        raise ToxlocError(
            f"No linear map was found in the blocks of this {model.config.model_type} model that writes to the "
            "residual stream, so there is nothing to localize or to edit."
        )
    return Structure(blocks, writers, _final_norm(blocks, calls), *_predictions(model, blocks, calls))


def _block_paths(model: Any) -> tuple[str, ...]:
    """Return the paths of the decoder's blocks: the list of modules with one entry per layer nearest to the root."""
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    root = _path_of(model, decoder)
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    lists = [entry for entry in lists if entry[1].startswith(root)] or lists
    if not lists:
        raise ToxlocError(
            f"This {model.config.model_type} model has no list of {n_layers} blocks in its text decoder; toxloc needs "
            "a decoder-only language model whose blocks are in a list."
        )
    _, name, module = min(lists, key=lambda entry: entry[0])
    return tuple(f"{name}.{i}" for i in range(len(module)))


@torch.no_grad()
def _trace(model: Any) -> list[_Call]:
    """Return the calls of all modules in one pass, in the order in which they end."""
    calls: list[_Call] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():

            def record(module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
                calls.append(_Call(path, module, _first([*args, *kwargs.values()]), _first([output])))

            stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(1, N_TOKENS + 1, device=model.get_input_embeddings().weight.device)[None] % vocabulary
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return calls


def _first(values: Any) -> Tensor | None:
    """Return the first tensor of floating-point numbers in nested lists."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        if isinstance(value, list | tuple) and (tensor := _first(value)) is not None:
            return tensor
        if isinstance(value, Mapping) and (tensor := _first(value.values())) is not None:
            return tensor
    return None


def _writers(model: Any, block: str, calls: list[_Call]) -> Iterator[Writer]:
    """Yield the writing maps of a block, at most one of each part."""
    inside = [call for call in calls if call.path.startswith(block + ".")]
    d_model = d_model_of(model)
    exceptions = EXCEPTIONS.get(text_config(model).model_type, {})
    writers: dict[str, Writer] = {}
    for child, module in model.get_submodule(block).named_children():
        if NO_WRITER.search(child) or isinstance(module, nn.Linear | Conv1D) or exceptions.get(child, "") is None:
            continue
        path = f"{block}.{child}"
        own = [call for call in inside if call.path == path or call.path.startswith(path + ".")]
        if map_ := exceptions.get(child):
            own = [call for call in own if call.path == f"{path}.{map_}"]
        for writer in _writers_of(path, module, own, inside, d_model):
            writers.setdefault(writer.part, writer)
    if not writers.keys() & {"mlp", "expert"}:  # OPT has the maps of its MLP directly in the block
        direct = [
            call
            for call in inside
            if (name := call.path.removeprefix(block + ".")).count(".") == 0
            and not NO_WRITER.search(name)
            and name not in exceptions
        ]
        if mlp := _last_map("mlp", block, direct, inside, d_model):
            writers["mlp"] = mlp
    if "expert" in writers and "mlp" in writers and SHARED.search(writers["mlp"].container.rsplit(".", 1)[1]):
        writers["shared_expert"] = replace(writers.pop("mlp"), part="shared_expert", norm=None)
    yield from writers.values()


def _writers_of(path: str, module: nn.Module, own: list[_Call], inside: list[_Call], d_model: int) -> Iterator[Writer]:
    """Yield the writing maps of a child of a block: a single map, or experts and a shared expert."""
    kind = f"{path.rsplit('.', 1)[1]} {type(module).__name__}"
    banks = [call for call in own if layout_of(call.module)]
    part = "mixer" if MIXER.search(kind) else "attention" if ATTENTION.search(kind) else "mlp"
    if not banks:
        if writer := _last_map(part, path, own, inside, d_model):
            yield writer
        return
    if part != "mlp":
        return  # JetMoE routes its attention, which toxloc does not read
    bank = banks[-1].path
    total = next(call for call in own if call.path == path)
    yield Writer("expert", bank, _norm_after(path, total, inside), (), path)
    shared = [call for call in own if not call.path.startswith(bank) and SHARED.search(call.path.removeprefix(path))]
    if writer := _last_map("shared_expert", path, shared, inside, d_model):
        yield replace(writer, norm=None)  # a norm of the sum does not undo a scaling of one of its terms


def _last_map(part: str, path: str, calls: list[_Call], inside: list[_Call], d_model: int) -> Writer | None:
    """Return the last linear map into the residual stream among some calls, and the maps that feed it."""
    maps = [call for call in calls if shape_of(call.module) is not None]
    into = [call for call in maps if shape_of(call.module)[1] == d_model]  # type: ignore[index]
    if not into:
        return None
    d_in = shape_of(into[-1].module)[0]  # type: ignore[index]
    readers = [
        call.path
        for call in maps[: maps.index(into[-1])]
        if shape_of(call.module) in ((d_model, d_in), (d_model, 2 * d_in))
    ]
    norm = _norm_after(path, into[-1], inside)
    return Writer(part, into[-1].path, norm, tuple(readers) if part in ("mlp", "shared_expert") else (), path)


def _norm_after(container: str, linear: _Call, inside: list[_Call]) -> str | None:
    """Return the path of the norm that reads exactly what a linear map, or a child that ends with it, returns."""
    written = [linear.wrote]
    # Bloom's attention adds the residual stream itself, so the norm after it reads more than the map's output.
    written += [c.wrote for c in inside if c.path == container and _is_same(c.wrote, linear.wrote)]
    for call in inside:
        if "norm" in type(call.module).__name__.lower() and any(_is_same(call.read, tensor) for tensor in written):
            return call.path
    return None


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of inputs and outputs of a linear map; None for other modules."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return shape if isinstance(shape[0], int) and isinstance(shape[1], int) else None  # type: ignore[return-value]


def _is_same(x: Tensor | None, y: Tensor | None) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return x is not None and y is not None and x.numel() == y.numel() and x.data_ptr() == y.data_ptr()


def _final_norm(blocks: tuple[str, ...], calls: list[_Call]) -> str | None:
    """Return the path of the norm that runs after the last block, beside the list of blocks."""
    parent = blocks[0].rsplit(".", 2)[0] if blocks[0].count(".") > 1 else ""
    last = max((i for i, call in enumerate(calls) if call.path == blocks[-1]), default=-1)
    for call in calls[last + 1 :]:
        beside = call.path.rsplit(".", 1)[0] if "." in call.path else ""
        if beside == parent and "norm" in type(call.module).__name__.lower():
            return call.path
    return None


def soft_cap_of(model: Any) -> float | None:
    """Return the c of soft-capped logits c * tanh(logits / c) from a model's configuration, or None."""
    config = text_config(model)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return float(cap) if cap is not None and cap > 0 else None


def _predictions(
    model: Any, blocks: tuple[str, ...], calls: list[_Call]
) -> tuple[str, str | None, float, float | None]:
    """Return how logits are computed: decoder, head, logit_scale and soft_cap of `Structure`.

    Raises:
        ToxlocError: the logits are not the unembedding's output, scaled and capped.
    """
    cap, unembedding = soft_cap_of(model), model.get_output_embeddings()
    prefix = model.base_model_prefix
    inner = _path_of(model, model.get_decoder())
    if not inner or not blocks[0].startswith(inner + "."):
        inner = blocks[0].rsplit(".", 2)[0]
    decoder = prefix if prefix and hasattr(model, prefix) else inner
    ends = {decoder, inner}
    last = next((call for call in calls[::-1] if call.module is unembedding), None)
    base = next((call for call in calls[::-1] if call.path in ends), None)
    logits, head = calls[-1].wrote, None
    if last is not None and base is not None and not _is_same(last.read, base.wrote):
        head = next((c.path for c in calls if _is_same(c.wrote, last.read) and _is_same(c.read, base.wrote)), "unknown")
    if last is None or base is None or last.wrote is None or logits is None or head == "unknown":
        raise ToxlocError(_no_unembedding(model))
    raw, final = last.wrote.flatten().float(), logits.flatten().float()
    before_cap = final if cap is None else cap * torch.atanh((final / cap).clamp(-0.999999, 0.999999))
    scale = float((raw @ before_cap) / (raw @ raw).clamp_min(1e-30))
    scale = 1.0 if abs(scale - 1) < 1e-3 else scale
    expected = raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    if float((expected - final).abs().max()) > tolerance * float(final.abs().max()):
        raise ToxlocError(_no_unembedding(model))
    return decoder, head, scale, cap


def _path_of(model: Any, part: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is part), "")


def _no_unembedding(model: Any) -> str:
    return (
        f"The logits of this {model.config.model_type} model are not its unembedding of the decoder's last hidden "
        "states, so toxloc cannot compute likelihoods; choose a decoder-only language model."
    )
