"""`LoadedModel`: two module trees that share their weights."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
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
from .architectures import blocks_of
from .bridge import bridge, starts_with_bos
from .completeness import check_finite
from .fingerprint import fingerprint_0_1, fingerprint_of, is_current
from .hooked_transformer import check_hooked, hooked_transformer
from .protocols import AppliedIntervention, HookedTransformerLike
from .site_view import Hook, SiteView, view_of
from .sites import PARTS, UNITS, AnySite, Site

HOOKS = ("transformer", "bridge")
Watcher = Callable[[Tensor], Tensor | None]  # reads an activation, and can return a replacement


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
        fingerprint: hash of every weight of the model as it was loaded.
    """

    hooked: Any
    hf: Any
    tokenizer: Any
    name: str
    prepend_bos: bool
    interventions: list[AppliedIntervention] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()  # held while an intervention is applied or reverted
        self.is_bridge = hasattr(self.hooked, "original_model")
        if self.hf is not None:
            self._blocks = blocks_of(self.hf)
        sites = [Site(layer, part) for layer in range(self.n_layers) for part in PARTS]
        self._views = {site: view_of(site, self.hooked, self.hf, self.is_bridge) for site in sites}
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
            ToxlocError: `hooks` is unknown, toxloc or the requested class of hooks does not support the model, or a
                weight is infinite or NaN.
        """
        if hooks not in (None, *HOOKS):
            raise ToxlocError(f"hooks={hooks!r}: choose one of {', '.join(HOOKS)}.")
        blocks_of(hf)
        if not hf.config.architectures:
            hf.config.architectures = [type(hf).__name__]
        check_finite(hf, name)
        hf.eval().requires_grad_(False)
        with quiet():
            hooked = None if hooks == "bridge" else hooked_transformer(hf, tokenizer, insist=hooks is not None)
            if hooked is None:
                hooked = bridge(hf, tokenizer, name)
        if prepend_bos is None:
            prepend_bos = starts_with_bos(tokenizer)
        return cls(hooked, hf, tokenizer, name, prepend_bos)

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
        with self.unedited():
            weights = [self.W_out(layer) for layer in range(self.n_layers)]
            return fingerprint == fingerprint_0_1(self.model_type, weights)

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.name!r}, {self.model_type}, {self.n_layers} layers, "
            f"d_model={self.d_model}, d_mlp={self.d_mlp}, {self.dtype}, {self.device})"
        )

    @property
    def model_type(self) -> str:
        """Name of the family in the model's configuration."""
        return str(self.hf.config.model_type if self.hf is not None else self.hooked.cfg.original_architecture)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.hooked.blocks)

    @property
    def d_mlp(self) -> int:
        """Number of neurons in an MLP (rows of W_out)."""
        return int(self.W_out(0).shape[0])

    @property
    def d_model(self) -> int:
        """Width of the residual stream (columns of W_out)."""
        return int(self.W_out(0).shape[1])

    @property
    def device(self) -> torch.device:
        """Device of the embedding, which takes the token ids."""
        table: Tensor = self.hooked.embed.W_E if self.hf is None else self.hf.get_input_embeddings().weight
        return table.device

    def device_of(self, layer: int) -> torch.device:
        """Return the device of a layer's MLP: `device`, unless the model is spread over several devices."""
        return self.W_out(layer).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.W_out(0).dtype

    @property
    def context(self) -> int:
        """Length in tokens of the longest text that the model can read."""
        if self.hf is None:
            return int(self.hooked.cfg.n_ctx)
        return int(getattr(self.hf.config, "max_position_embeddings", None) or 2048)

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
        return module.weight, module.bias

    @property
    def soft_cap(self) -> float | None:
        """The c of families with soft-capped logits c * tanh(logits / c), such as gemma2; None for other families."""
        cap = (
            getattr(self.hf.config, "final_logit_softcapping", None)
            if self.hf is not None
            else self.hooked.cfg.output_logits_soft_cap
        )
        return float(cap) if cap is not None and cap > 0 else None

    def sites(self, *parts: str) -> list[Site]:
        """List the sites of the model layer by layer, of the given parts or of all parts.

        Example:
            >>> from toxloc import load_model
            >>> load_model().sites("attention")[:2]
            [Site(layer=0, part='attention'), Site(layer=1, part='attention')]
        """
        return [site for site in self._views if not parts or site.part in parts]

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
                f"{' and '.join(PARTS)}."
            )
        return self._views[site]

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
        """Return a live view of a site's weight; in-place changes change the model.

        An integer means the MLP of that layer. The shape is [d_mlp, d_model] for an MLP (W_out) and
        [n_heads * d_head, d_model] for an attention (W_O).
        """
        return self.at(site).W

    def b_out(self, site: AnySite) -> Float[Tensor, " d_model"] | None:
        """Return the live bias of a site's output, or None if the family has no bias there."""
        return self.at(site).bias

    def block(self, layer: int) -> nn.Module:
        """Return the block of a layer in `hf`.

        Raises:
            ToxlocError: there is no Hugging Face model.
        """
        self.check_hf("this operation")
        return self._blocks[layer]

    def down_projection(self, site: AnySite) -> nn.Module:
        """Return the module of `hf` that holds a site's weight; hooks on `hf` are placed there.

        Raises:
            ToxlocError: there is no Hugging Face model, or no such site.
        """
        self.check_hf("this operation")
        linear = self.at(site).linear
        assert linear is not None
        return linear

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
    def hooks(self, hooks: Sequence[tuple[Hook, Watcher]]) -> Iterator[None]:
        """Place hooks on `hooked` for the duration of a block.

        Args:
            hooks: pairs of a place and a function. A place is the name of a hook point, or a module, for its output.
                The function takes the activation; if it returns a tensor, the tensor replaces the activation.
        """
        named = [(place, lambda x, hook, watch=watch: watch(x)) for place, watch in hooks if isinstance(place, str)]
        with ExitStack() as stack:
            for place, watch in hooks:
                if not isinstance(place, str):
                    handle = place.register_forward_hook(lambda module, args, output, watch=watch: watch(output))
                    stack.callback(handle.remove)
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
            base = self.hooked.original_model.base_model
            hidden: Tensor = base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
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
            twin = copy.deepcopy(self.hf)
        return LoadedModel.from_hf(
            twin, self.tokenizer, self.name, self.prepend_bos, "bridge" if self.is_bridge else "transformer"
        )

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
