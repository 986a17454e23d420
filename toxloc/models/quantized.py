"""Linear maps with quantized weights: read W as numbers, and add a change of low rank to what they return.

The weights of a quantized map are packed integers with scales, so a small change of W cannot be written into them.
Instead, a change ΔW = uᵀ v is added to what the map returns: keys @ W + (keys @ uᵀ) @ v.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ToxlocError

ROWS = 1024  # unit vectors that a map is applied to at once
PACKAGES = {"torchao": "torchao>=0.18,<1", "bitsandbytes": "bitsandbytes>=0.46,<1"}


def quantization_config(choice: str, dtype: torch.dtype) -> Any:
    """Return the configuration with which transformers quantizes a model while it loads it.

    Args:
        choice: one of `toxloc.models.settings.QUANTIZATIONS`.
        dtype: type of what the quantized maps return.

    Raises:
        ToxlocError: the library is not installed.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    check_installed("torchao" if choice == "torchao-int8" else "bitsandbytes", f"quantize={choice!r}")
    if choice == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if choice == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def check_installed(library: str, what: str) -> None:
    """Raise ToxlocError if torchao or bitsandbytes is needed but not installed."""
    if library in PACKAGES and find_spec(library) is None:
        raise ToxlocError(
            f"{what} needs the library {library}, which is not installed; run: pip install '{PACKAGES[library]}'"
        )


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear map whose weight is not an ordinary tensor of floating-point numbers."""
    if isinstance(module, Conv1D) or not all(
        isinstance(getattr(module, size, None), int) for size in ("in_features", "out_features")
    ):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    return type(weight.data) is not Tensor or not weight.is_floating_point()


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the ordinary tensors that hold the weights of a model, with their names: a quantized weight has several."""
    for name, parameter in model.named_parameters():
        yield from _parts(name, parameter)
    for path, module in model.named_modules():
        if is_quantized(module):
            yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers(recurse=False))


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):  # of torchao, for example
        for part in tensor.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(tensor, part))
        return
    yield name, tensor if type(tensor.data) is Tensor else tensor.data.as_subclass(Tensor)
    state = getattr(tensor, "quant_state", None)  # of 4-bit weights of bitsandbytes
    scales = {"absmax": getattr(state, "absmax", None), "SCB": getattr(tensor, "SCB", None)}
    yield from ((f"{name}.{part}", scale) for part, scale in scales.items() if isinstance(scale, Tensor))


def shared_states(model: nn.Module) -> dict[int, Any]:
    """Return the state that bitsandbytes keeps beside the weights of a model, by id, for `copy.deepcopy` to share."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): value for value in values if type(value).__module__.startswith("bitsandbytes.")}


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit maps of bitsandbytes from packing their weights for the CPU, because packed maps have no gradient."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def unchangeable(model: nn.Module) -> dict[int, Any]:
    """Return the quantized weights of a model and their states, by id; no edit changes them, so copies share them."""
    weights = [module.weight for module in model.modules() if is_quantized(module) and hasattr(module, "weight")]
    return {id(weight): weight for weight in weights} | shared_states(model)


def without_weights(model: nn.Module) -> Any:
    """Copy a model to the meta device, without memory for its weights; quantized maps become ordinary linear maps."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if is_quantized(module):
            sizes: Any = module.in_features, module.out_features
            has_bias = getattr(module, "bias", None) is not None
            memo[id(module)] = nn.Linear(sizes[0], sizes[1], bias=has_bias, device="meta").requires_grad_(False)
            continue
        for parameter in module.parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta")
            memo.setdefault(id(parameter), nn.Parameter(empty, requires_grad=False))
    return copy.deepcopy(model, memo)


@torch.no_grad()
def dequantized(linear: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return a copy of a linear map's weight as floating-point numbers, in the layout of `nn.Linear`."""
    sizes: Any = linear
    weight, shape = getattr(linear, "weight", None), (int(sizes.out_features), int(sizes.in_features))
    if isinstance(weight, Tensor) and hasattr(weight, "__tensor_flatten__"):
        numbers: Tensor = weight.dequantize().detach()
        if numbers.shape == shape and type(numbers) is Tensor:
            return numbers
    # Any other library: the rows of W are what the map returns for unit vectors, minus its bias.
    device, dtype = device_of(linear), dtype_of(linear)
    compute = getattr(linear, "_old_forward", linear.forward)  # without hooks
    rows = []
    for start in range(0, shape[1], ROWS):
        unit = torch.zeros(min(ROWS, shape[1] - start), shape[1], device=device, dtype=dtype)
        unit.diagonal(start).fill_(1)
        rows.append(compute(unit))
    W = torch.cat(rows)
    bias = getattr(linear, "bias", None)
    return (W if bias is None else W - bias).T


def device_of(linear: nn.Module) -> torch.device:
    """Return the device of a quantized map."""
    return next(tensor for tensors in (linear.parameters(), linear.buffers()) for tensor in tensors).device


def dtype_of(linear: nn.Module) -> torch.dtype:
    """Return the type of the activations of a quantized map, as far as the map tells; float32 otherwise."""
    known = getattr(linear, "compute_dtype", None) or getattr(getattr(linear, "weight", None), "dtype", None)
    return known if isinstance(known, torch.dtype) and known.is_floating_point else torch.float32


class QuantizedMap:
    """A linear map of `lm.hf` with a quantized weight, and the same map in `lm.hooked`.

    Args:
        linear: the module of `lm.hf`.
        twin: the module of `lm.hooked`, which shares the weight.
    """

    def __init__(self, linear: nn.Module, twin: nn.Module):
        self.linear, self.twin = linear, twin
        self._added: list[tuple[Tensor, Tensor]] = []

    def weights(self) -> tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"] | None]:
        """Return a copy of W as numbers, with the changes that are added now, and the bias."""
        added, self._added = self._added, []
        try:
            W, bias = dequantized(self.linear).T, getattr(self.linear, "bias", None)
        finally:
            self._added = added
        for u, v in added:
            W = torch.addmm(W.float(), u.to(W.device).T, v.to(W.device)).to(W.dtype)
        return W, bias if isinstance(bias, Tensor) else None

    def add(self, u: Float[Tensor, "r d_in"], v: Float[Tensor, "r d_model"], stack: ExitStack) -> None:
        """Let both maps compute keys @ (W + uᵀ v) until the stack is closed.

        Raises:
            ToxlocError: a number is infinite or NaN.
        """
        if not (u.isfinite().all() and v.isfinite().all()):
            raise ToxlocError("The edit makes weights infinite or NaN, so it is not applied; lower its strength.")
        change = u.float(), v.float()
        if not self._added:
            with ExitStack() as installed:
                for module in (self.linear, self.twin):
                    self._install(module, installed)
                self._installed = installed.pop_all()
        self._added.append(change)

        def remove() -> None:
            self._added[:] = [kept for kept in self._added if kept is not change]
            if not self._added:
                self._installed.close()

        stack.callback(remove)

    def _install(self, module: nn.Module, stack: ExitStack) -> None:
        """Replace the module's computation, so that every hook sees what the changed map returns."""
        name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"  # accelerate renames it
        before, compute = module.__dict__.get(name), getattr(module, name)

        def forward(keys: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = compute(keys, *args, **kwargs)
            for u, v in self._added:
                output = output + ((keys.float() @ u.to(keys.device).T) @ v.to(keys.device)).to(output.dtype)
            return output

        def remove() -> None:
            if before is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = before

        module.__dict__[name] = forward
        stack.callback(remove)
