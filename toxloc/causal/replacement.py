"""Replacements: the parts of a model that are replaced, and the hooks that replace them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import ToxlocError
from ..localization.activation import Activation
from ..localization.pair_batch import CONSTANT, By, Replacement
from ..models.banks import Routed
from ..models.loaded import LoadedModel
from ..models.site_view import SiteView
from ..models.sites import Site, Unit
from .knockout import Parts, split_parts


class ReplacedPart:
    """One part of a model, and the hook that replaces it.

    Args:
        lm: the model.
        part: a site, of which the term that it adds to the residual stream is replaced; or a unit, of which the keys
            are replaced.
        activation: this term, or the keys of the site.
    """

    def __init__(self, lm: LoadedModel, part: Site | Unit, activation: Activation):
        self.lm, self.part, self.activation = lm, part, activation
        self.view: SiteView = lm.at(part if isinstance(part, Site) else part[0])
        self.unit = None if isinstance(part, Site) else part[1]
        self.columns = slice(None) if self.unit is None else self.view.rows(self.unit)

    @contextmanager
    def placed(self, new: Replacement) -> Iterator[None]:
        """Replace the part for the duration of the block."""
        with ExitStack() as stack:
            if self.view.bank is None:
                stack.enter_context(self.lm.hooks([(self.activation.hook, lambda x: self._replaced(x, new))]))
            else:
                self._replace_expert(new, stack)
            yield

    def _replaced(self, x: Tensor, new: Replacement) -> Tensor:
        flat = x.reshape(*new.where.shape, -1)
        own = flat[..., self.columns]
        values = new.new_values(own, self.activation.constant[self.columns])
        out = flat.clone()
        out[..., self.columns] = torch.where(self._where(new).to(x.device), values, own)
        return out.view_as(x)

    def _where(self, new: Replacement) -> Bool[Tensor, "rows pos _d"]:
        return new.where[..., None]

    def _replace_expert(self, new: Replacement, stack: ExitStack) -> None:
        bank, expert, seen = self.view.bank, self.view.site.expert, list[Routed]()
        assert bank is not None and expert is not None

        def watch(routed: Routed) -> None:
            if routed.expert == expert:
                seen[:] = [routed]  # the tokens of the output that is computed next

        def replaced(m: Tensor) -> Tensor:
            (routed,) = seen
            where = new.where.to(m.device).flatten()[routed.tokens, None]
            # The router weight multiplies the output later, except in Llama 4, where it multiplies the input.
            scale = 1.0 if bank.layout == "batched" else routed.router[:, None].to(m).clamp_min(1e-9)
            return torch.where(where, self.activation.constant.to(m) / scale, m)

        bank.watch(watch, stack)
        bank.change_output(expert, replaced, stack)


class ReplacedUnits(ReplacedPart):
    """The units of a site, any number of which are replaced at once by one hook.

    The means of all keys are read once; `choose` then says which units are replaced.

    Args:
        lm: the model.
        site: the site, which is not an expert that a router chooses.
    """

    def __init__(self, lm: LoadedModel, site: Site):
        super().__init__(lm, site, Activation.keys(lm, site))
        self.chosen = torch.ones(self.view.d_in, dtype=torch.bool)

    def choose(self, units: Bool[np.ndarray, " n_units"]) -> None:
        """Set the units to replace."""
        self.chosen = self.view.per_key(torch.from_numpy(units))

    def _where(self, new: Replacement) -> Bool[Tensor, "rows pos _d"]:
        return super()._where(new) & self.chosen.to(new.where.device)


def replaced_parts(lm: LoadedModel, parts: Parts, by: By) -> list[ReplacedPart]:
    """Return the parts to replace, each once, in the order given.

    Raises:
        ToxlocError: there are no parts, or both sites and units; the model does not have a part; the part is a neuron
            of a routed expert; or it is a routed expert and `by` takes values from another text.
    """
    sites, units = split_parts(parts)
    chosen: list[Site | Unit] = list(dict.fromkeys([*sites, *units]))
    for part in chosen:
        site = part if isinstance(part, Site) else part[0]
        if not isinstance(part, Site):
            lm.check_unit(*part)
        if lm.at(site).bank is not None and not isinstance(part, Site):
            raise ToxlocError(f"A neuron of {site.title} cannot be patched; patch the expert as a whole, {site!r}.")
        if lm.at(site).bank is not None and by not in CONSTANT:
            raise ToxlocError(
                f"{site.title} is an expert that a router chooses, and another text's tokens go to other experts; "
                f"patch it with by='mean' or by='zero' instead of by={by!r}."
            )
    written = {part: Activation.written_by(lm, part) for part in chosen if isinstance(part, Site)}
    keys = {site: Activation.keys(lm, site) for site in {part[0] for part in chosen if not isinstance(part, Site)}}
    return [ReplacedPart(lm, part, written[part] if isinstance(part, Site) else keys[part[0]]) for part in chosen]
