"""The module tree that hooks are placed on: a TransformerBridge, or the model itself if TransformerLens lacks it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ToxlocError
from .hooked_transformer import is_spread
from .quantized import shared_states

SAME = {torch.float32: 1e-3, torch.float64: 1e-6}  # largest difference of logits, relative to the largest logit
SAME_IN_16_BITS = 0.06

Watcher = Callable[[Tensor], Tensor | None]  # reads an activation, and can return a replacement


def first_of(output: Any) -> Tensor:
    """Return the first tensor of what a module returns: a tensor, or a tuple or list that begins with one."""
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first


def with_first(output: Any, first: Tensor) -> Any:
    """Return what a module returns with another first tensor."""
    if isinstance(output, list):  # the blocks of GPT-1
        return [first, *output[1:]]
    return (first, *output[1:]) if isinstance(output, tuple) else first


@dataclass(frozen=True)
class Point:
    """What a module of the hooked model returns or, with `before`, reads: its first tensor."""

    module: nn.Module
    before: bool = False

    def watch(self, watcher: Watcher, stack: ExitStack, *, first: bool = False) -> None:
        """Show the activation to a function, which can replace it, until the stack is closed.

        Args:
            watcher: the function.
            stack: removes the hook when it is closed.
            first: whether the function runs before those that are already placed there.
        """

        def reads(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = watcher(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            name = next(iter(kwargs))
            new = watcher(kwargs[name])
            return None if new is None else (args, {**kwargs, name: new})

        def returns(module: nn.Module, args: Any, output: Any) -> Any:
            new = watcher(first_of(output))
            return None if new is None else with_first(output, new)

        handle = (
            self.module.register_forward_pre_hook(reads, with_kwargs=True, prepend=first)
            if self.before
            else self.module.register_forward_hook(returns, prepend=first)
        )
        stack.callback(handle.remove)


class ModuleTree(nn.Module):
    """A model that TransformerLens has no architecture for; only its modules can be hooked, not named points.

    Args:
        model: a copy of a Hugging Face model that shares its weights.
    """

    hook_dict: Mapping[str, Any] = {}

    def __init__(self, model: Any):
        super().__init__()
        self.original_model = model

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[Any] = (), **_: Any) -> Iterator[None]:
        """Do nothing if no hooks are given.

        Raises:
            ToxlocError: hooks on named points are given.
        """
        if fwd_hooks:
            raise ToxlocError(
                f"TransformerLens has no architecture for this {self.original_model.config.model_type} model, so it "
                f"has no hook point {fwd_hooks[0][0]!r}; hook its modules instead."
            )
        yield


class HookedTree:
    """The modules of a hooked model, found by their paths in the Hugging Face model.

    Args:
        hooked: a TransformerBridge or a `ModuleTree`.
        modules: the modules of its model by path, as they were before TransformerLens wrapped them.
    """

    def __init__(self, hooked: Any, modules: Mapping[str, nn.Module]):
        self.hooked, self._modules = hooked, modules
        self._components: dict[int, tuple[str, nn.Module]] = {}
        for name, component in hooked.named_modules(remove_duplicate=False):
            original = getattr(component, "original_component", None)
            if isinstance(original, nn.Module) and not name.startswith("original_model.") and "_original" not in name:
                self._components.setdefault(id(original), (name, component))

    def module(self, path: str) -> nn.Module:
        """Return the module at a path."""
        return self._modules[path]

    def reads(self, path: str) -> str | Point:
        """Return the hook for what a module reads: a named hook point if there is one."""
        return self._named(path, "hook_in") or Point(self._modules[path], before=True)

    def returns(self, path: str) -> str | Point:
        """Return the hook for what a module returns: a named hook point if there is one."""
        return self._named(path, "hook_out") or Point(self._modules[path])

    def halves(self, container: str) -> tuple[str, str] | None:
        """Return the hook points of gate and up, if TransformerLens splits the map that holds both."""
        name, component = self._components.get(id(self._modules[container]), ("", None))
        points = f"{name}.gate.hook_out", f"{name}.in.hook_out"
        split = type(component).__name__ == "JointGateUpMLPBridge"
        return points if split and all(point in self.hooked.hook_dict for point in points) else None

    def _named(self, path: str, point: str) -> str | None:
        name, _ = self._components.get(id(self._modules[path]), ("", None))
        full = f"{name}.{point}"
        return full if name and full in self.hooked.hook_dict else None


def bridge_tree(hf: Any, tokenizer: Any, name: str) -> HookedTree:
    """Make a TransformerBridge over a copy of a Hugging Face model that shares every weight with it.

    Raises:
        ToxlocError: TransformerLens cannot make a TransformerBridge of the model that computes the same logits.
    """
    twin, modules = _twin(hf)
    try:
        hooked = _bridge(twin, hf, tokenizer, name)
        # The bridge splits the joint q, k, v matrix of some families into new parameters, which are not frozen yet.
        hooked.requires_grad_(False)
        difference = _difference(hf, hooked.original_model)
    except Exception as error:  # the adapters of TransformerLens raise errors of many types
        raise ToxlocError(
            f"TransformerLens cannot make a TransformerBridge of this {hf.config.model_type} model "
            f"({type(error).__name__}: {error}); leave hooks= out, or use hooks='modules'."
        ) from error
    if not difference < SAME.get(hf.dtype, SAME_IN_16_BITS):
        raise ToxlocError(
            f"The TransformerBridge of this {hf.config.model_type} model computes other logits than the model (the "
            f"difference is {difference:.1g} of the largest logit); leave hooks= out, or use hooks='modules'."
        )
    return HookedTree(hooked, modules)


@torch.no_grad()
def _difference(hf: Any, twin: Any) -> float:
    """Return the largest difference of logits, relative to the largest logit, on a few right-padded tokens."""
    ids, mask = tokens(hf)
    expected, logits = (m(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()] for m in (hf, twin))
    return float((logits.float() - expected.float()).abs().max() / expected.float().abs().max())


def tokens(hf: Any) -> tuple[Tensor, Tensor]:
    """Return a few token ids [2, 8] and their mask, with padding in the second row."""
    table = hf.get_input_embeddings().weight
    ids = (torch.arange(1, 17, device=table.device).view(2, 8) * 7) % table.shape[0]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def module_tree(hf: Any) -> HookedTree:
    """Make a hooked model with the modules of the Hugging Face model, without named hook points."""
    twin, modules = _twin(hf)
    return HookedTree(ModuleTree(twin), modules)


def _twin(hf: Any) -> tuple[Any, dict[str, nn.Module]]:
    """Return a copy of a model that shares every weight with it, and its modules by path."""
    shared = {id(t): t for t in [*hf.parameters(), *hf.buffers()]} | shared_states(hf)
    twin = copy.deepcopy(hf, shared)
    return twin, dict(twin.named_modules())


def _bridge(twin: Any, hf: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    device: dict[str, torch.device] = {} if is_spread(hf) else {"device": hf.device}
    with _offline():
        return TransformerBridge.boot_transformers(name, hf_model=twin, tokenizer=tokenizer, **device)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep TransformerLens from looking for a multimodal model's processor on the hub, which takes minutes offline."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether texts begin with BOS: the tokenizer adds it, or BOS is also the token that ends documents."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [bos] or bos == tokenizer.eos_token_id)
