"""`LoadedModel`: two module trees that share their weights."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ToxlocError
from ..support.quiet import quiet
from ..support.signals import Atomic
from .completeness import check_finite
from .families import CHECKED, check_decoder
from .fingerprint import fingerprint_0_1, fingerprint_of, is_current
from .hooked_transformer import check_hooked, hooked_transformer
from .hooked_tree import HookedTree, ModuleTree, Watcher, bridge_tree, module_tree, starts_with_bos
from .mapped import is_mapped, remapped
from .model_parts import ModelParts
from .protocols import AppliedIntervention, HookedTransformerLike
from .quantized import is_quantized, keep_differentiable, unchangeable
from .self_check import check_hooks
from .site_view import Hook
from .sites import Site
from .structure import Structure, find_structure, text_config

HOOKS = ("transformer", "bridge", "modules")


@dataclass(eq=False)
class LoadedModel(ModelParts):
    """A language model in two forms that share their weights: with TransformerLens hooks, and as a Hugging Face model.

    Attributes:
        hooked: a TransformerBridge or, with transformer-lens 3.9, a HookedTransformer if that class supports the
            family. Hooks on it read and change its activations.
        hf: the Hugging Face model, used to generate and to save. It shares every weight with `hooked` (an edit of
            either model edits both) but not its modules: a hook on `hooked` does not run here. None if only a
            HookedTransformer was given.
        tokenizer: the Hugging Face tokenizer.
        name: name of the model in results.
        prepend_bos: whether texts begin with the BOS token (see `load_model`).
        interventions: the applied interventions, oldest first. Interventions update this list.
        structure: where the blocks and the writing maps of `hf` are; None if only a HookedTransformer was given.
        tree: the modules of `hooked` by their paths in `hf`; None for a HookedTransformer.
        fingerprint: hash of every weight of the model as it was loaded.
        is_quantized: whether the weights of linear maps are quantized, so that they cannot be edited.
        is_offloaded: whether the weights are on the disk (`load_model(..., offload=True)`).
    """

    hooked: Any
    hf: Any
    tokenizer: Any
    name: str
    prepend_bos: bool
    interventions: list[AppliedIntervention] = field(default_factory=list)
    structure: Structure | None = None
    tree: HookedTree | None = None

    def __post_init__(self) -> None:
        self.lock = threading.RLock()  # held while an intervention is applied or reverted
        self.is_bridge = hasattr(self.hooked, "original_model")
        self.is_quantized = self.hf is not None and any(map(is_quantized, self.hf.modules()))
        self.is_offloaded = self.hf is not None and is_mapped(self.hf)
        if self.hf is not None and self.structure is None:
            self.structure = find_structure(self.hf)
        self._views = {view.site: view for view in self._find_views()}
        self.fingerprint = self.current_fingerprint()

    @classmethod
    def from_hf(
        cls, hf: Any, tokenizer: Any, name: str = "model", prepend_bos: bool | None = None, hooks: str | None = None
    ) -> "LoadedModel":
        """Wrap a Hugging Face causal language model that is already in memory; its weights are frozen.

        Args:
            hf: the model.
            tokenizer: its tokenizer.
            name: name of the model in results.
            prepend_bos: see `load_model`.
            hooks: see `load_model`.

        Raises:
            ToxlocError: `hooks` is unknown; the model is not a decoder-only language model, or fails a check of
                `toxloc.models.self_check`; the requested class of hooks does not support it; or a weight is infinite or
                NaN.
        """
        if hooks not in (None, *HOOKS):
            raise ToxlocError(f"hooks={hooks!r}: choose one of {', '.join(HOOKS)}.")
        check_decoder(hf.config, name)
        if not hf.config.architectures:
            hf.config.architectures = [type(hf).__name__]
        check_finite(hf, name)
        hf.eval().requires_grad_(False)
        keep_differentiable(hf)
        with quiet():
            structure = find_structure(hf)
            hooked, tree = None, None
            if is_mapped(hf) and hooks is None:
                hooks = "modules"  # TransformerLens copies some weights of some families
            quantized = any(map(is_quantized, hf.modules()))
            if quantized and hooks == "transformer":
                raise ToxlocError(f"{name} is quantized, which HookedTransformer does not support; leave hooks= out.")
            if hooks in (None, "transformer") and not quantized:
                hooked = hooked_transformer(hf, tokenizer, insist=hooks is not None)
            if hooked is None:
                tree = _tree(hf, tokenizer, name, hooks)
                hooked = tree.hooked
        if prepend_bos is None:
            prepend_bos = starts_with_bos(tokenizer)
        lm = cls(hooked, hf, tokenizer, name, prepend_bos, structure=structure, tree=tree)
        if text_config(hf).model_type not in CHECKED:
            check_hooks(lm)
        return lm

    @classmethod
    def of(cls, model: Any) -> "LoadedModel":
        """Wrap a HookedTransformer of transformer-lens 3.9; return a LoadedModel unchanged.

        A wrapped model can be localized, turned down and edited, but it cannot generate completions or be exported,
        because it has no Hugging Face model. Wrapping does not change the HookedTransformer. While a wrapper is in use,
        wrapping the same model returns the same wrapper.

        Raises:
            ToxlocError: `model` is neither, or is a HookedTransformer without a tokenizer or without dense MLPs.

        Example:
            >>> lm = LoadedModel.of(HookedTransformer.from_pretrained("gpt2"))      # doctest: +SKIP
        """
        if isinstance(model, cls):
            return model
        known = _WRAPPERS.get(id(model))
        if known is not None and known.hooked is model:
            return known
        check_hooked(model)
        wrapper = cls(model, None, model.tokenizer, model.cfg.model_name, starts_with_bos(model.tokenizer))
        _WRAPPERS[id(model)] = wrapper
        return wrapper

    def current_fingerprint(self) -> str:
        """Return a hash of every weight in its current state; see `fingerprint_of`."""
        return fingerprint_of(self.hooked if self.hf is None else self.hf, self.model_type)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Return whether a fingerprint in a file is that of this model; files of version 0.1 have an older kind."""
        if is_current(fingerprint):
            return fingerprint == self.fingerprint
        if self.sites("mlp") != [Site(layer) for layer in range(self.n_layers)]:
            return False  # version 0.1 knew only models with an MLP in every block
        with self.unedited():
            weights = [self.W_out(layer) for layer in range(self.n_layers)]
            return fingerprint == fingerprint_0_1(self.model_type, weights)

    def __repr__(self) -> str:
        experts = max((view.bank.n_experts for view in self._views.values() if view.bank), default=0)
        return (
            f"LoadedModel({self.name!r}, {self.model_type}, {self.n_layers} layers, "
            f"d_model={self.d_model}, d_mlp={self.d_mlp}, {f'{experts} experts, ' if experts else ''}"
            f"{self.dtype}, {self.device})"
        )

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[Hook, Watcher]], *, first: bool = False) -> Iterator[None]:
        """Place hooks on `hooked` for the duration of a block.

        Args:
            hooks: pairs of a place and a function. A place is the name of a hook point, or what a module reads or
                returns (`Point`). The function takes the activation; if it returns a tensor, the tensor replaces the
                activation.
            first: whether the functions run before those of the hooks that are already placed, such as the hooks of
                applied interventions.
        """
        named = [(place, lambda x, hook, watch=watch: watch(x)) for place, watch in hooks if isinstance(place, str)]
        with ExitStack() as stack:
            for place, watch in hooks:
                if not isinstance(place, str):
                    place.watch(watch, stack, first=first)
            if first and self.hooked.hook_dict:
                for name, full_hook in named:
                    _place_first(self.hooked.hook_dict[name], full_hook, stack)
            else:
                stack.enter_context(self.hooked.hooks(fwd_hooks=named))
            yield

    def forward(
        self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Run the hooked model and return its logits; `mask` is 1 at real tokens, 0 at padding."""
        if self.is_bridge:
            logits: Tensor = self.hooked.original_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            logits = self.hooked(ids, attention_mask=mask)
        return logits.to(self.device)

    def forward_hidden(
        self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run the hooked model without the costly unembedding; return the hidden states after the last norm."""
        if self.is_bridge:
            assert self.structure is not None and self.tree is not None
            base = self.tree.module(self.structure.decoder)
            hidden: Tensor = base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            if self.structure.head is not None:
                hidden = self.tree.module(self.structure.head)(hidden)
        else:
            hidden = self.hooked.ln_final(self.hooked(ids, attention_mask=mask, stop_at_layer=self.n_layers))
        return hidden.to(self.device)

    def unedited(self) -> AbstractContextManager[None]:
        """Revert every applied intervention for the duration of the block, then apply them again."""
        return _UneditedBlock(self)

    def copy(self) -> "LoadedModel":
        """Return an independent copy of the unedited model, with separate weights and no interventions applied.

        Raises:
            ToxlocError: there is no Hugging Face model.

        Example:
            >>> from toxloc import load_model
            >>> load_model().copy().interventions
            []
        """
        self.check_hf("a copy")
        with self.unedited():
            twin = copy.deepcopy(self.hf, remapped(self.hf) | unchangeable(self.hf))
        kind = "transformer"
        if self.tree is not None:
            kind = "modules" if isinstance(self.hooked, ModuleTree) else "bridge"
        return LoadedModel.from_hf(twin, self.tokenizer, self.name, self.prepend_bos, kind)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoadedModel":
        """Return `copy()`.

        Raises:
            ToxlocError: an intervention is applied; a copy could not revert it.
        """
        if self.interventions:
            raise ToxlocError(
                f"{self.name} cannot be copied while {self.interventions[-1]!r} is applied, because the copy could not "
                "revert it; revert it first, or copy the unedited model with lm.copy()."
            )
        return self.copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled.

        Raises:
            ToxlocError: always.
        """
        raise ToxlocError(
            f"The model {self.name} cannot be pickled, because of its hooks; in the other process, load it again with "
            "toxloc.load_model."
        )


def _tree(hf: Any, tokenizer: Any, name: str, hooks: str | None) -> HookedTree:
    """Make a TransformerBridge or, if `hooks` allows it and no bridge can be made, hook the modules of the model."""
    if hooks != "modules":
        try:
            return bridge_tree(hf, tokenizer, name)
        except ToxlocError:
            if hooks == "bridge":
                raise
    return module_tree(hf)


def _place_first(point: Any, hook: Any, stack: ExitStack) -> None:
    """Place a hook on a hook point of TransformerLens, before its other hooks, until the stack is closed."""
    point.add_hook(hook, prepend=True)
    handle = point.fwd_hooks[0]
    stack.callback(handle.hook.remove)
    stack.callback(point.fwd_hooks.remove, handle)


class _UneditedBlock(Atomic):
    """The context manager of `LoadedModel.unedited`."""

    def __init__(self, lm: LoadedModel):
        self._lm = lm
        self._reverted: list[AppliedIntervention] = []

    def enter(self) -> None:
        try:
            while self._lm.interventions:
                intervention = self._lm.interventions[-1]
                intervention.revert(self._lm)
                self._reverted.append(intervention)
        except BaseException:
            self.exit()
            raise

    def exit(self) -> None:
        while self._reverted:
            self._reverted[-1].apply(self._lm)
            self._reverted.pop()


_WRAPPERS: WeakValueDictionary[int, LoadedModel] = WeakValueDictionary()  # by the id of the HookedTransformer
AnyModel = LoadedModel | HookedTransformerLike  # the types that `LoadedModel.of` takes
