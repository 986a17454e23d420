"""`LoadedModel`: two module trees that share their weights."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ToxlocError
from ..support.quiet import quiet
from ..support.signals import Atomic
from .completeness import check_finite
from .families import CHECKED, check_decoder
from .fingerprint import fingerprint_0_1, fingerprint_of, is_current
from .hooked_transformer import check_hooked, hooked_transformer
from .hooked_tree import HookedTree, ModuleTree, Watcher, bridge_tree, module_tree, starts_with_bos
from .mapped import is_mapped, remapped
from .protocols import AppliedIntervention, HookedTransformerLike
from .quantized import dequantized, is_quantized, keep_differentiable, unchangeable
from .self_check import check_hooks
from .site_view import Hook, SiteView, view_of_hooked_transformer, views_of_hooked_transformer, views_of_writer
from .sites import FEED_FORWARD, PARTS, UNITS, AnySite, Part, Site
from .structure import Structure, d_model_of, find_structure, text_config

HOOKS = ("transformer", "bridge", "modules")


@dataclass(eq=False)
class LoadedModel:
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

    def _find_views(self) -> Iterator[SiteView]:
        if self.structure is None:
            for layer in range(len(self.hooked.blocks)):
                for part in ("mlp", "attention"):
                    yield view_of_hooked_transformer(Site(layer, part), self.hooked)
            return
        for layer, writers in enumerate(self.structure.writers):
            for writer in sorted(writers, key=lambda writer: PARTS.index(writer.part)):
                if self.tree is None:
                    yield views_of_hooked_transformer(writer, layer, self.hf, self.hooked)
                else:
                    yield from views_of_writer(layer, writer, self.hf, self.tree)

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

    @property
    def model_type(self) -> str:
        """Name of the family in the model's configuration."""
        return str(self.hf.config.model_type if self.hf is not None else self.hooked.cfg.original_architecture)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.hooked.blocks) if self.structure is None else len(self.structure.blocks)

    @property
    def d_mlp(self) -> int:
        """Number of neurons of the first MLP or expert (rows of its W_out); 0 if the model has neither."""
        return next((view.d_in for view in self._views.values() if view.site.part in FEED_FORWARD), 0)

    @property
    def d_model(self) -> int:
        """Width of the residual stream (columns of W_out)."""
        return d_model_of(self.hf) if self.is_quantized else int(self._first.W.shape[1])

    @property
    def _first(self) -> SiteView:
        return next(iter(self._views.values()))

    @property
    def device(self) -> torch.device:
        """Device of the embedding, which takes the token ids."""
        table: Tensor = self.hooked.embed.W_E if self.hf is None else self.hf.get_input_embeddings().weight
        return table.device

    def device_of(self, layer: int) -> torch.device:
        """Return the device of a layer: `device`, unless the model is spread over several devices."""
        return next((view.device for view in self._views.values() if view.site.layer == layer), self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights; of a quantized model, of those that are not quantized."""
        if self.is_quantized:
            plain = (p for p in self.hf.parameters() if type(p.data) is Tensor and p.is_floating_point())
            dtype: torch.dtype = next(plain).dtype
            return dtype
        return self._first.W.dtype

    @property
    def context(self) -> int:
        """Length in tokens of the longest text that the model can read."""
        if self.hf is None:
            return int(self.hooked.cfg.n_ctx)
        config = text_config(self.hf)
        lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "context_length"))
        return int(next((length for length in lengths if length), 2048))

    @property
    def d_vocab(self) -> int:
        """Number of logits per position (rows of the unembedding)."""
        return int(self.unembedding[0].shape[0])

    @property
    def unembedding(self) -> tuple[Float[Tensor, "d_vocab d_model"], Float[Tensor, " d_vocab"] | None]:
        """Weight and bias that map the final hidden states to logits."""
        if self.hf is None:
            return self.hooked.W_U.T, self.hooked.b_U
        module = self.hf.get_output_embeddings()
        return dequantized(module) if is_quantized(module) else module.weight, module.bias

    @property
    def soft_cap(self) -> float | None:
        """The c of families with soft-capped logits c * tanh(logits / c), such as gemma2; None for other families."""
        if self.structure is not None:
            return self.structure.soft_cap
        cap = self.hooked.cfg.output_logits_soft_cap
        return float(cap) if cap is not None and cap > 0 else None

    @property
    def logit_scale(self) -> float:
        """Factor between what the unembedding returns and the logits, before a soft cap; 1 for most families."""
        return 1.0 if self.structure is None else self.structure.logit_scale

    def sites(self, *parts: str) -> list[Site]:
        """List the sites of the model layer by layer, of the given parts or of all parts.

        Example:
            >>> from toxloc import load_model
            >>> [str(site) for site in load_model().sites("attention")[:2]]
            ['0.attention', '1.attention']
        """
        return [site for site in self._views if not parts or site.part in parts]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that the sites of the model have, such as ("mlp", "attention")."""
        return tuple(part for part in PARTS if any(site.part == part for site in self._views))

    def sites_of_choice(self, choice: str) -> list[Site]:
        """List the sites that a choice of the methods' setting `sites` means.

        Args:
            choice: "mlp" for all MLPs and experts (all mixers, if the model has neither), "attention" for all
                attentions and mixers, "all" for every site.
        """
        mixing = ("attention", "mixer")
        parts = {"mlp": FEED_FORWARD, "attention": mixing, "all": PARTS}[choice]
        return self.sites(*parts) or self.sites(*mixing)

    def at(self, site: AnySite) -> SiteView:
        """Return the view of a site in this model: its live weight, its hooks and its units.

        An integer means the MLP of that layer.

        Raises:
            ToxlocError: the model has no such site.
        """
        site = Site.of(site)
        if site not in self._views:
            raise ToxlocError(
                f"There is no {site.title} in {self.name}; it has layers 0 to {self.n_layers - 1} with "
                f"{' and '.join(self._parts_in_words(site))}."
            )
        return self._views[site]

    def _parts_in_words(self, site: Site) -> list[str]:
        """Return the parts of the layer of a site that does not exist, or of the model."""
        views = [view for view in self._views.values() if view.site.layer == site.layer] or list(self._views.values())
        parts = dict.fromkeys(view.site.part for view in views)
        experts = max((view.bank.n_experts for view in views if view.bank), default=0)
        return [f"experts 0 to {experts - 1}" if part == "expert" else part for part in parts]

    def check_unit(self, site: AnySite, unit: int) -> None:
        """Check that a site has a unit with this number.

        Raises:
            ToxlocError: the model has no such site, or the site has no such neuron or head.
        """
        view = self.at(site)
        if not 0 <= unit < view.n_units:
            kind = UNITS[view.site.part]
            raise ToxlocError(
                f"There is no {kind} {unit} in {view.site.title} of {self.name}; it has {kind}s 0 to "
                f"{view.n_units - 1}."
            )

    def W_out(self, site: AnySite) -> Float[Tensor, "d_in d_model"]:
        """Return a live view of a site's weight, whose changes change the model; of a quantized weight, a copy.

        An integer means the MLP of that layer. The shape is [d_mlp, d_model] for an MLP (W_out) and
        [n_heads * d_head, d_model] for an attention (W_O).
        """
        return self.at(site).W

    def b_out(self, site: AnySite) -> Float[Tensor, " d_model"] | None:
        """Return the live bias of a site's output, or None if the family has no bias there."""
        return self.at(site).bias

    @property
    def decoder(self) -> nn.Module:
        """The module of `hf` that returns the last hidden states.

        Raises:
            ToxlocError: there is no Hugging Face model.
        """
        self.check_hf("this operation")
        assert self.structure is not None
        decoder: nn.Module = self.hf.get_submodule(self.structure.decoder)
        return decoder

    @property
    def final_norm(self) -> nn.Module:
        """The norm of `hf` between the last block and the unembedding.

        Raises:
            ToxlocError: there is no Hugging Face model, or it has no such norm (OPT-350m norms inside its blocks).
        """
        self.check_hf("this operation")
        assert self.structure is not None
        if self.structure.final_norm is None:
            raise ToxlocError(
                f"{self.name} has no norm between its last block and its unembedding, so the tokens that its neurons "
                "promote cannot be computed from its weights; choose a model with a final norm."
            )
        norm: nn.Module = self.hf.get_submodule(self.structure.final_norm)
        return norm

    def block(self, layer: int) -> nn.Module:
        """Return the block of a layer in `hf`.

        Raises:
            ToxlocError: there is no Hugging Face model.
        """
        self.check_hf("this operation")
        assert self.structure is not None
        block: nn.Module = self.hf.get_submodule(self.structure.blocks[layer])
        return block

    def block_hook(self, layer: int) -> Hook:
        """Return the hook for the residual stream after a block of `hooked`."""
        name = f"blocks.{layer}.hook_resid_post"
        if self.tree is None or name in self.hooked.hook_dict:
            return name
        assert self.structure is not None
        return self.tree.returns(self.structure.blocks[layer])

    def down_projection(self, site: AnySite) -> nn.Module:
        """Return the module of `hf` that holds a site's weight; for an expert, the module that holds all experts.

        Raises:
            ToxlocError: there is no Hugging Face model, or no such site.
        """
        self.check_hf("this operation")
        view = self.at(site)
        module = view.linear if view.hf_bank is None else view.hf_bank.module
        assert module is not None
        return module

    def contribution(self, site: AnySite) -> nn.Module:
        """Return the module of `hf` whose output a site adds to the residual stream.

        Raises:
            ToxlocError: there is no Hugging Face model, or no such site.
        """
        self.check_hf("this operation")
        writer = self.at(site).writer
        assert writer is not None
        return writer

    def check_hf(self, what: str) -> None:
        """Check that there is a Hugging Face model.

        Args:
            what: subject of the error message: the operation that needs the Hugging Face model.

        Raises:
            ToxlocError: there is none.
        """
        if self.hf is None:
            raise ToxlocError(
                f"{self.name} is only a HookedTransformer, and {what} needs the Hugging Face model as well; load the "
                "model with toxloc.load_model, which keeps both with shared weights."
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
