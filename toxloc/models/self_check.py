"""Check a loaded model: do hooks and edits of the weights do what toxloc's methods rely on?

The checks run on a few tokens when a model of a family is loaded that the coverage table does not contain
(docs/models.md), and for all families in the tests.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ToxlocError
from .banks import Bank, Routed
from .hooked_tree import SAME, SAME_IN_16_BITS, Watcher, tokens
from .site_view import Hook, SiteView
from .sites import AnySite, Site
from .weights import overwrite


@runtime_checkable
class Checked(Protocol):
    """The parts of a `LoadedModel` that the checks use."""

    hf: Any
    name: str

    def sites(self, *parts: str) -> list[Site]: ...
    def at(self, site: AnySite) -> SiteView: ...
    def hooks(self, hooks: Sequence[tuple[Hook, Watcher]]) -> AbstractContextManager[None]: ...
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor: ...


@torch.no_grad()
def check_hooks(lm: Checked) -> None:
    """Check that the model is causal, and that hooks and edits of one site of each part have the expected effect.

    Raises:
        ToxlocError: a check fails; the message says which.
    """
    ids, mask = tokens(lm.hf)
    plain = lm.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    limit = SAME.get(lm.hf.dtype, SAME_IN_16_BITS) * float(plain[mask.bool()].abs().max())

    def differ(a: Tensor, b: Tensor) -> bool:
        real = mask.bool()[:, : a.shape[1]]
        return not float((a[real].float() - b[real].float()).abs().max()) <= limit

    if differ(lm.hf(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits, plain[:, :-1]):
        raise _refusal(lm, "its predictions change with tokens that come later, so it is not a decoder")
    if differ(lm.forward(ids, mask), plain):
        raise _refusal(lm, "the hooked model computes other logits than the plain model")
    firsts = {site.part: site for site in reversed(lm.sites())}
    for site in firsts.values():
        if not _gradient(lm, site, ids, mask).isfinite().all():
            raise _refusal(lm, f"the gradient of its predictions at {site.title} is not finite")
    for site in _used(lm, firsts.values(), ids, mask):
        view = lm.at(site)
        if view.quantized is not None:
            continue  # its weight cannot be edited
        with ExitStack() as stack:
            factor = torch.zeros(view.n_units, device=view.device).index_fill(0, torch.tensor(0).to(view.device), 1.0)
            overwrite(view.W, view.W.float() * view.per_key(1 - 3 * factor)[:, None], stack)
            edited = lm.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits
            if differ(lm.forward(ids, mask), edited):
                raise _refusal(lm, f"an edit of the weights of {site.title} is not seen by both module trees")
        with scaled_keys(lm, view, view.per_key(1 - 3 * factor)):
            hooked = lm.forward(ids, mask)
        if differ(hooked, edited):
            raise _refusal(lm, f"scaling a unit of {site.title} with a hook differs from scaling its weights")
        if torch.equal(edited.float()[mask.bool()], plain[mask.bool()]) and bool(view.W[view.rows(0)].any()):
            raise _refusal(lm, f"an edit of the weights of {site.title} does not change the logits")


def _gradient(lm: Checked, site: Site, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the gradient of a log-likelihood with respect to what a site writes; NaN if there is none."""
    leaves: list[Tensor] = []

    def cut(m: Tensor) -> Tensor:
        leaves.append(m.detach().requires_grad_(True))
        return leaves[-1].clone()  # some models add to m in place, which autograd forbids for a leaf

    with torch.enable_grad(), lm.hooks([(lm.at(site).output_hook, cut)]):
        log_p = lm.forward(ids, mask).float().log_softmax(-1)[mask.bool()]
        if log_p.requires_grad:
            log_p[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    gradient = leaves[0].grad if leaves else None
    return torch.full((), torch.nan) if gradient is None else gradient


@contextmanager
def scaled_keys(lm: Checked, view: SiteView, factors: Tensor) -> Iterator[None]:
    """Multiply the keys of a site by factors, with a hook on the hooked model."""

    def scale(x: Tensor) -> Tensor:
        return (x.flatten(2) if x.ndim == 4 else x).float().mul(factors).to(x.dtype).view_as(x)

    with ExitStack() as stack:
        if view.bank is not None:
            assert view.site.expert is not None
            view.bank.change_keys(view.site.expert, scale, stack)
        else:
            stack.enter_context(lm.hooks([(view.keys_hook, scale)]))
        yield


def _used(lm: Checked, sites: Any, ids: Tensor, mask: Tensor) -> Iterator[Site]:
    """Yield the sites; in place of an expert without tokens, an expert of its block that has some."""
    for site in sites:
        bank: Bank | None = lm.at(site).bank
        if bank is None:
            yield site
            continue
        with ExitStack() as stack:
            counts = _count_routed(bank, mask, stack)
            lm.forward(ids, mask)
        if not counts:
            raise _refusal(lm, f"the experts of layer {site.layer} cannot be watched")
        yield Site(site.layer, "expert", max(counts, key=lambda expert: counts[expert]))


def _count_routed(bank: Bank, mask: Tensor, stack: ExitStack) -> dict[int, int]:
    """Count the real tokens that are routed to each expert until the stack is closed."""
    counts: dict[int, int] = {}

    def watch(routed: Routed) -> None:
        counts[routed.expert] = int(mask.flatten()[routed.tokens].sum())

    bank.watch(watch, stack)
    return counts


def _refusal(lm: Checked, reason: str) -> ToxlocError:
    return ToxlocError(
        f"{lm.name} is a {lm.hf.config.model_type} model, a family that toxloc does not know, and it failed a check: "
        f"{reason}. Choose a model of a family in docs/models.md."
    )
