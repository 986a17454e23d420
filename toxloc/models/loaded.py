"""`LoadedModel`: two module trees over one set of weights."""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ToxlocError
from ..support.progress import quiet
from .architectures import architecture, blocks_of
from .hooked_transformer import OUTPUT_HOOK, add_output_hooks, check_hooked, hooked_transformer, is_spread

if TYPE_CHECKING:
    from ..interventions.base import Intervention

HOOKS = ("transformer", "bridge")
WRAPPER = "_toxloc"  # attribute of a HookedTransformer that holds its LoadedModel
AnyModel = Any  # a LoadedModel, or what `LoadedModel.of` makes one of


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
        applied: the interventions in force, oldest first. Interventions keep this list themselves.
    """

    hooked: Any
    hf: Any
    tokenizer: Any
    name: str
    prepend_bos: bool
    applied: "list[Intervention]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_bridge = hasattr(self.hooked, "original_model")
        if self.hf is not None:
            self._family, self._blocks = architecture(self.hf.config.model_type), blocks_of(self.hf)
        self.fingerprint = _fingerprint(self)

    @classmethod
    def from_hf(cls, hf: Any, tokenizer: Any, name: str = "model", prepend_bos: bool | None = None,
                hooks: str | None = None) -> "LoadedModel":
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
        """Return a LoadedModel as it is, and wrap a HookedTransformer of transformer-lens 3.9, once.

        A wrapped one can be localized, turned down and edited; it has no Hugging Face model that could write
        completions or be exported.

        Raises:
            ToxlocError: it is neither, or a HookedTransformer without a tokenizer or with another kind of MLP.

        Example:
            >>> lm = LoadedModel.of(HookedTransformer.from_pretrained("gpt2"))      # doctest: +SKIP
        """
        if isinstance(model, cls):
            return model
        wrapped = vars(model).get(WRAPPER) if hasattr(model, "__dict__") else None
        if wrapped is None:
            check_hooked(model)
            add_output_hooks(model)
            wrapped = cls(model, None, model.tokenizer, model.cfg.model_name, starts_with_bos(model.tokenizer))
            setattr(model, WRAPPER, wrapped)  # the two refer to each other, and go together
        found: LoadedModel = wrapped
        return found

    def __repr__(self) -> str:
        return (f"LoadedModel({self.name!r}, {self.model_type}, {self.n_layers} layers, "
                f"d_model={self.d_model}, d_mlp={self.d_mlp}, {self.dtype}, {self.device})")

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
        table: Tensor = (self.hooked.embed.W_E if self.hf is None else self.hf.get_input_embeddings().weight)
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
        cap = (getattr(self.hf.config, "final_logit_softcapping", None) if self.hf is not None
               else self.hooked.cfg.output_logits_soft_cap)
        return float(cap) if cap is not None and cap > 0 else None

    @property
    def has_post_norm(self) -> bool:
        """Whether a norm follows the MLP before the residual stream."""
        if self.hf is None:
            return bool(self.hooked.cfg.use_normalization_before_and_after)
        return self._family.post_norm is not None

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Live view of the matrix that writes layer `layer`'s MLP output; in-place changes change the model."""
        weight: Tensor = self.hooked.blocks[layer].mlp.W_out
        return weight

    def b_out(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Live bias of the MLP output, or None where the family has none."""
        bias: Tensor | None = getattr(self.hooked.blocks[layer].mlp, "b_out", None)
        return bias

    def block(self, layer: int) -> nn.Module:
        """Return a layer's block in `hf`."""
        self.check_hf("this")
        return self._blocks[layer]

    def down_projection(self, layer: int) -> nn.Module:
        """Return the module of `hf` that maps a layer's neurons to its output: where hooks on `hf` go."""
        return self.block(layer).get_submodule(self._family.down)

    def contribution(self, layer: int) -> nn.Module:
        """Return the module of `hf` whose output a layer's MLP adds to the residual stream."""
        return self.block(layer).get_submodule(self._family.post_norm or self._family.down)

    def check_hf(self, what: str) -> None:
        """Raise ToxlocError if there is no Hugging Face model, which `what` needs."""
        if self.hf is None:
            raise ToxlocError(f"{self.name} is a HookedTransformer alone, and {what} needs the Hugging Face model as "
                              "well; load it with toxloc.load_model, which keeps both over one set of weights.")

    def neuron_hook(self, layer: int) -> str:
        """Name of the hook point of the neurons' activations a [batch, pos, d_mlp]."""
        return f"blocks.{layer}.mlp.hook_post"

    def output_hook(self, layer: int) -> str:
        """Name of the hook point of m = a @ W_out + b_out [batch, pos, d_model], before any norm that may follow."""
        return f"blocks.{layer}.mlp.out.hook_out" if self.is_bridge else f"blocks.{layer}.{OUTPUT_HOOK}"

    def contribution_hook(self, layer: int) -> str:
        """Name of the hook point of what the MLP adds to the residual stream: m, normed where the family does so."""
        return f"blocks.{layer}.hook_mlp_out"

    def forward(self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
                ) -> Float[Tensor, "batch pos d_vocab"]:
        """Run the hooked model to its logits; `mask` is 1 at real tokens."""
        if self.is_bridge:
            logits: Tensor = self.hooked.original_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            logits = self.hooked(ids, attention_mask=mask)
        return logits.to(self.device)

    def forward_hidden(self, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
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
        """Take every intervention in force off for the duration of the block, then put them back."""
        in_force = list(self.applied)
        for intervention in reversed(in_force):
            intervention.revert(self)
        try:
            yield
        finally:
            for intervention in in_force:
                intervention.apply(self)


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
