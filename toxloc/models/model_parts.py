"""The parts of a model: its sizes, its sites, the modules of each, and what turns hidden states into logits."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ToxlocError
from .hooked_tree import HookedTree
from .quantized import dequantized, is_quantized
from .site_view import Hook, SiteView, view_of_hooked_transformer, views_of_hooked_transformer, views_of_writer
from .sites import FEED_FORWARD, PARTS, UNITS, AnySite, Part, Site
from .structure import Structure, d_model_of, text_config


class ModelParts:
    """The part of `LoadedModel` that knows where everything is; `LoadedModel` describes the attributes."""

    hooked: Any
    hf: Any
    name: str
    structure: Structure | None
    tree: HookedTree | None
    is_quantized: bool
    _views: dict[Site, SiteView]

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
        return self.embedding.device

    @property
    def embedding(self) -> Float[Tensor, "n_rows d_embedding"]:
        """The table of token embeddings."""
        table: Tensor = self.hooked.embed.W_E if self.hf is None else self.hf.get_input_embeddings().weight
        return table

    @property
    def embedding_hook(self) -> Hook:
        """Hook for the token embeddings [batch, pos, d_embedding], without embeddings of positions.

        In a HookedTransformer of BLOOM it comes after the norm of the embeddings.
        """
        if self.tree is None:
            return "hook_embed"
        table = self.hf.get_input_embeddings()
        return self.tree.returns(next(path for path, module in self.hf.named_modules() if module is table))

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

    @property
    def entry_hook(self) -> Hook:
        """Hook for the residual stream before the first block of `hooked`."""
        name = "blocks.0.hook_resid_pre"
        if self.tree is None or name in self.hooked.hook_dict:
            return name
        assert self.structure is not None
        return self.tree.reads(self.structure.blocks[0])

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
