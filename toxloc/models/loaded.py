"""`LoadedModel`: two module trees over one set of weights."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ToxlocError
from ..support.quiet import quiet
from .architectures import architecture, blocks_of
from .hooked_transformer import check_hooked, hooked_transformer, is_spread
from .site_view import Hook, SiteView, weights_of
from .sites import PARTS, UNITS, AnySite, Site

HOOKS = ("transformer", "bridge")
Watcher = Callable[[Tensor], Tensor | None]  # sees an activation, and may return another in its place


@runtime_checkable
class AppliedIntervention(Protocol):
    """What a model knows of an intervention that is applied to it."""

    kind: ClassVar[str]

    @property
    def in_weights(self) -> bool:
        """Whether all of it is in the weights."""

    @property
    def fingerprint(self) -> str:
        """Hash of what it does."""

    def describe(self) -> dict[str, Any]:
        """Say what it is."""

    def apply(self, lm: Any) -> None:
        """Apply it to a model."""

    def revert(self, lm: Any) -> None:
        """Take it off a model."""


@runtime_checkable
class HookedTransformerLike(Protocol):
    """A HookedTransformer of transformer-lens 3.9, which `LoadedModel.of` wraps."""

    cfg: Any
    blocks: Any
    tokenizer: Any


@dataclass(eq=False)
class LoadedModel:
    """A language model seen twice: through TransformerLens hooks, and as the plain Hugging Face model.

    Attributes:
        hooked: a TransformerBridge, or with transformer-lens 3.9 a HookedTransformer where that class has the family;
            hooks placed here see and change its activations.
        hf: the Hugging Face model. It shares every weight with `hooked` (an edit of one is an edit of the
            other) but not its modules: a hook on `hooked` does not fire here. Used to generate and to save. None if
            nothing but a HookedTransformer was given.
        tokenizer: the Hugging Face tokenizer.
        name: what it is called in results.
        prepend_bos: whether texts begin with the BOS token (see `load_model`).
        interventions: the interventions that are applied, oldest first. Interventions keep this list themselves.
    """

    hooked: Any
    hf: Any
    tokenizer: Any
    name: str
    prepend_bos: bool
    interventions: list[AppliedIntervention] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_bridge = hasattr(self.hooked, "original_model")
        if self.hf is not None:
            self._family, self._blocks = architecture(self.hf.config.model_type), blocks_of(self.hf)
        self._views = {
            Site(layer, part): self._view(Site(layer, part)) for layer in range(self.n_layers) for part in PARTS
        }
        self.fingerprint = _fingerprint(self)

    @classmethod
    def from_hf(
        cls, hf: Any, tokenizer: Any, name: str = "model", prepend_bos: bool | None = None, hooks: str | None = None
    ) -> "LoadedModel":
        """Wrap a Hugging Face causal language model that is already in memory; its weights are frozen.

        Args:
            hf: the model.
            tokenizer: its tokenizer.
            name: what it is called in results.
            prepend_bos: see `load_model`.
            hooks: see `load_model`.

        Raises:
            ToxlocError: the family is not supported, by toxloc or by the class asked for.
        """
        if hooks not in (None, *HOOKS):
            raise ToxlocError(f"hooks={hooks!r}: choose one of {', '.join(HOOKS)}.")
        blocks_of(hf)
        if not hf.config.architectures:
            hf.config.architectures = [type(hf).__name__]
        hf.eval().requires_grad_(False)
        with quiet():
            hooked = None if hooks == "bridge" else hooked_transformer(hf, tokenizer, insist=hooks is not None)
            if hooked is None:
                hooked = _bridge(hf, tokenizer, name)
        if prepend_bos is None:
            prepend_bos = starts_with_bos(tokenizer)
        return cls(hooked, hf, tokenizer, name, prepend_bos)

    @classmethod
    def of(cls, model: Any) -> "LoadedModel":
        """Return a LoadedModel as it is, and wrap a HookedTransformer of transformer-lens 3.9.

        A wrapped model can be localized, turned down and edited; it has no Hugging Face model that could write
        completions or be exported. The HookedTransformer itself is left as it is. As long as a wrapper is in use, the
        same model gives the same wrapper.

        Raises:
            ToxlocError: it is neither, or a HookedTransformer without a tokenizer or with another kind of MLP.

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

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.name!r}, {self.model_type}, {self.n_layers} layers, "
            f"d_model={self.d_model}, d_mlp={self.d_mlp}, {self.dtype}, {self.device})"
        )

    @property
    def model_type(self) -> str:
        """The family, as the model's configuration calls it."""
        return str(self.hf.config.model_type if self.hf is not None else self.hooked.cfg.original_architecture)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.hooked.blocks)

    @property
    def d_mlp(self) -> int:
        """Neurons in one MLP (rows of W_out)."""
        return int(self.W_out(0).shape[0])

    @property
    def d_model(self) -> int:
        """Width of the residual stream (columns of W_out)."""
        return int(self.W_out(0).shape[1])

    @property
    def device(self) -> torch.device:
        """Where texts go in: the device of the embedding."""
        table: Tensor = self.hooked.embed.W_E if self.hf is None else self.hf.get_input_embeddings().weight
        return table.device

    def device_of(self, layer: int) -> torch.device:
        """Where a layer's MLP lies; `device`, unless the model is spread over several."""
        return self.W_out(layer).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.W_out(0).dtype

    @property
    def context(self) -> int:
        """Longest text in tokens that the model takes."""
        if self.hf is None:
            return int(self.hooked.cfg.n_ctx)
        return int(getattr(self.hf.config, "max_position_embeddings", None) or 2048)

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return int(self.unembedding[0].shape[0])

    @property
    def unembedding(self) -> tuple[Float[Tensor, "d_vocab d_model"], Float[Tensor, " d_vocab"] | None]:
        """Matrix and bias that make logits of the final hidden states."""
        if self.hf is None:
            return self.hooked.W_U.T, self.hooked.b_U
        module = self.hf.get_output_embeddings()
        return module.weight, module.bias

    @property
    def soft_cap(self) -> float | None:
        """The c of a family that bends its logits to c * tanh(logits / c), as gemma2 does."""
        cap = (
            getattr(self.hf.config, "final_logit_softcapping", None)
            if self.hf is not None
            else self.hooked.cfg.output_logits_soft_cap
        )
        return float(cap) if cap is not None and cap > 0 else None

    def sites(self, *parts: str) -> list[Site]:
        """List the sites of the model, layer by layer, of all parts or of those given.

        Example:
            >>> from toxloc import load_model
            >>> load_model().sites("attention")[:2]
            [Site(layer=0, part='attention'), Site(layer=1, part='attention')]
        """
        return [site for site in self._views if not parts or site.part in parts]

    def at(self, site: AnySite) -> SiteView:
        """Return a site in this model: its live weight, its hooks, its units. An integer means that layer's MLP.

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
        """Raise ToxlocError if a site has no unit of this number: no such neuron, or no such head."""
        view = self.at(site)
        if not 0 <= unit < view.n_units:
            kind = UNITS[view.site.part]
            raise ToxlocError(
                f"There is no {kind} {unit} in {view.site.title} of {self.name}; it has {kind}s 0 to "
                f"{view.n_units - 1}."
            )

    def _view(self, site: Site) -> SiteView:
        """Find a site's weight, norm and hooks."""
        mlp, block, cfg = site.part == "mlp", self.hooked.blocks[site.layer], self.hooked.cfg
        if self.hf is None:
            linear, norm, offset, has_norm = None, None, 0.0, bool(cfg.use_normalization_before_and_after)
            heads = cfg.n_heads

            def weights() -> tuple[Tensor, Tensor | None]:
                if mlp:
                    return block.mlp.W_out, block.mlp.b_out
                return block.attn.W_O.view(-1, cfg.d_model), block.attn.b_O
        else:
            own, path = self._blocks[site.layer], self._family.norm(site.part)
            linear, norm = own.get_submodule(self._family.linear(site.part)), own.get_submodule(path) if path else None
            offset, has_norm, heads = self._family.norm_offset, path is not None, self.hf.config.num_attention_heads
            weights = partial(weights_of, linear)
        at = f"blocks.{site.layer}"
        # A HookedTransformer has no hook point for m where a norm follows, so the modules themselves are hooked there.
        output: Hook = (
            (f"{at}.mlp.out.hook_out" if mlp else f"{at}.attn.o.hook_out")
            if self.is_bridge
            else block.mlp
            if mlp
            else block.attn
        )
        keys = f"{at}.mlp.hook_post" if mlp else f"{at}.attn.o.hook_in" if self.is_bridge else f"{at}.attn.hook_z"
        return SiteView(
            site,
            weights()[0].shape[0] if mlp else heads,
            weights,
            linear,
            norm,
            offset,
            has_norm,
            keys,
            output,
            f"{at}.hook_mlp_out" if mlp else f"{at}.hook_attn_out",
        )

    def W_out(self, site: AnySite) -> Float[Tensor, "d_in d_model"]:
        """Live view of the weight of a site, W_out of a layer's MLP for an integer; in-place changes change the model.

        The shape is [d_mlp, d_model] for an MLP and [n_heads * d_head, d_model] for an attention.
        """
        return self.at(site).W

    def b_out(self, site: AnySite) -> Float[Tensor, " d_model"] | None:
        """Live bias of a site's output, or None where the family has none."""
        return self.at(site).bias

    def block(self, layer: int) -> nn.Module:
        """Return a layer's block in `hf`."""
        self.check_hf("this")
        return self._blocks[layer]

    def down_projection(self, site: AnySite) -> nn.Module:
        """Return the module of `hf` that holds a site's weight: where hooks on `hf` go."""
        self.check_hf("this")
        linear = self.at(site).linear
        assert linear is not None
        return linear

    def contribution(self, site: AnySite) -> nn.Module:
        """Return the module of `hf` whose output a site adds to the residual stream."""
        self.check_hf("this")
        writer = self.at(site).writer
        assert writer is not None
        return writer

    def check_hf(self, what: str) -> None:
        """Raise ToxlocError if there is no Hugging Face model, which `what` needs."""
        if self.hf is None:
            raise ToxlocError(
                f"{self.name} is a HookedTransformer alone, and {what} needs the Hugging Face model as "
                "well; load it with toxloc.load_model, which keeps both over one set of weights."
            )

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[Hook, Watcher]]) -> Iterator[None]:
        """Place hooks on `hooked` for the duration of a block.

        Args:
            hooks: pairs of a place and a function. A place is the name of a hook point or a module, whose output is
                shown. The function sees the activation; a tensor that it returns takes the activation's place.
        """
        named = [(place, lambda x, hook, see=see: see(x)) for place, see in hooks if isinstance(place, str)]
        with ExitStack() as stack:
            for place, see in hooks:
                if not isinstance(place, str):
                    handle = place.register_forward_hook(lambda module, args, output, see=see: see(output))
                    stack.callback(handle.remove)
            stack.enter_context(self.hooked.hooks(fwd_hooks=named))
            yield

    def forward(
        self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Run the hooked model to its logits; `mask` is 1 at real tokens."""
        if self.is_bridge:
            logits: Tensor = self.hooked.original_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            logits = self.hooked(ids, attention_mask=mask)
        return logits.to(self.device)

    def forward_hidden(
        self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run the hooked model to its final hidden states: everything but the unembedding, the costly last step."""
        if self.is_bridge:
            base = self.hooked.original_model.base_model
            hidden: Tensor = base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        else:
            hidden = self.hooked.ln_final(self.hooked(ids, attention_mask=mask, stop_at_layer=self.n_layers))
        return hidden.to(self.device)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Take every applied intervention off for the duration of the block, then apply them again."""
        applied = list(self.interventions)
        for intervention in reversed(applied):
            intervention.revert(self)
        try:
            yield
        finally:
            for intervention in applied:
                intervention.apply(self)


_WRAPPERS: WeakValueDictionary[int, LoadedModel] = WeakValueDictionary()  # by the id of the HookedTransformer
AnyModel = LoadedModel | HookedTransformerLike  # what `LoadedModel.of` takes


def _bridge(hf: Any, tokenizer: Any, name: str) -> Any:
    """Boot a bridge over a twin of the model that shares every weight with it."""
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    twin = copy.deepcopy(hf, shared)
    where = {} if is_spread(hf) else {"device": hf.device}
    hooked = TransformerBridge.boot_transformers(name, hf_model=twin, tokenizer=tokenizer, **where)
    # The bridge splits some families' joint q, k, v matrix into parameters of its own.
    hooked.requires_grad_(False)
    return hooked


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether a model's texts begin with BOS: the tokenizer adds it, or BOS is also the token that ends documents."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [bos] or bos == tokenizer.eos_token_id)


def _fingerprint(lm: LoadedModel) -> str:
    """Hash of the shape and of sixteen rows of every W_out: tells models apart without reading them whole."""
    shape = [lm.model_type, lm.n_layers, lm.d_mlp, lm.d_model]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for layer in range(lm.n_layers):
        rows = lm.W_out(layer)[:: max(1, lm.d_mlp // 16)].detach().float().cpu().contiguous()
        digest.update(rows.numpy().tobytes())
    return digest.hexdigest()[:16]
