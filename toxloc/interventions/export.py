"""Export an edited model as a Hugging Face folder, or an edit as a PEFT adapter with exactly its ΔW."""

import copy
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from ..models.sites import Site
from ..support.files import check_free, new_folder
from ..support.quiet import quiet
from .base import KINDS, Intervention
from .model_card import model_card

Factors = tuple[Float[Tensor, "r d_in"], Float[Tensor, "r d_model"]]
FORMATS = ("hf", "peft")
PEFT = "peft>=0.13,<1"


def export_hf(
    lm: LoadedModel, folder: str | PathLike[str], *, overwrite: bool = False, effect: dict[str, Any] | None = None
) -> None:
    """Save the model with its applied interventions as a Hugging Face folder that loads without toxloc.

    The folder contains the weights as safetensors, the configurations, the tokenizer, and a model card that states what
    was edited, on which texts the edit was fitted, what was measured, and what the limits are.

    Args:
        lm: the model with its applied interventions; it may have none.
        folder: the folder to write; it appears only when it is complete.
        overwrite: replace the folder if it is not empty.
        effect: measurements for the card: `{"before": entry, "after": entry}`, each an `Evaluation.to_dict()` or an
            entry of `runs` in results.json. By default the card says that toxicity was not measured.

    Raises:
        ToxlocError: an applied intervention works with hooks, `effect` was measured with another method, the folder is
            not empty (and `overwrite` is off), or a file cannot be written.

    Example:
        >>> with edit.applied(lm): export_hf(lm, "detoxified")             # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("detoxified")             # doctest: +SKIP
    """
    lm.check_hf("an export")
    hooked = [intervention for intervention in lm.interventions if not intervention.in_weights]
    if hooked:
        raise _hooks_error(hooked)
    card = model_card(lm, lm.interventions, effect, adapter=False)
    with new_folder(folder, overwrite) as partial, quiet():
        try:
            lm.hf.save_pretrained(partial)
            lm.tokenizer.save_pretrained(partial)
        except (OSError, ValueError) as error:
            raise ToxlocError(f"{lm.name} cannot be saved: {error}") from error
        (partial / "README.md").write_text(card, encoding="utf-8")


def export_peft(
    intervention: Intervention,
    lm: LoadedModel,
    folder: str | PathLike[str],
    *,
    overwrite: bool = False,
    effect: dict[str, Any] | None = None,
) -> None:
    """Save an intervention that changes only W_out and W_O as a LoRA adapter for the unedited model.

    LoRA adds B A to the weight of a linear map, with A [r, d_in] and B [d_model, r]. Here Aᵀ Bᵀ is the ΔW of each site
    in float32, also for a model in 16 bits. The vectors of TRNE are used unchanged; any other change is factored by a
    singular value decomposition without the singular values within the rounding error of W. All sites have the same
    rank, padded with zeros, and lora_alpha equals that rank, so that every reader of the format scales by 1.

    Args:
        intervention: the intervention to save, in the form that edits the weights (`baked`). It need not be applied,
            and other applied interventions are ignored.
        lm: the model that the adapter is for; unchanged when this returns. A temporary copy in float32 is made.
        folder: the folder to write; it appears only when it is complete.
        overwrite: replace the folder if it is not empty.
        effect: see `export_hf`.

    Raises:
        ToxlocError: peft is not installed; the intervention has no form in the weights, changes parameters other than
            W_out and W_O, changes nothing, or has so high a rank that the adapter would be larger than the matrices;
            `effect` was measured with another method; the folder is not empty (and `overwrite` is off) or cannot be
            written.

    Example:
        >>> export_peft(edit, lm, "adapter")                               # doctest: +SKIP
        >>> PeftModel.from_pretrained(base, "adapter")                     # doctest: +SKIP

    Source: LoRA (Hu et al. 2021, arXiv:2106.09685).
    """
    check_free(Path(folder), overwrite)
    check_format("peft")
    baked = intervention.baked()
    card = model_card(lm, [baked], effect, adapter=True)
    with lm.unedited():
        copied = LoadedModel.from_hf(copy.deepcopy(lm.hf).float(), lm.tokenizer, lm.name, lm.prepend_bos)
        factors = _factors(baked, copied, lm)
    with new_folder(folder, overwrite) as partial, quiet():
        _adapter(copied, factors, lm.hf.name_or_path or lm.name).save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").write_text(card, encoding="utf-8")


def check_fitted_on(intervention: Intervention, lm: LoadedModel) -> None:
    """Raise ToxlocError if the intervention or a part of it was fitted on another model.

    An intervention that was constructed without a fit is accepted for every model.
    """
    for part in [intervention, *intervention.leaves()]:
        if part.fitted_on and not lm.has_fingerprint(part.fitted_on["fingerprint"]):
            raise ToxlocError(
                f"{part!r} was fitted on {part.fitted_on['name']} (fingerprint {part.fitted_on['fingerprint']}), and "
                f"this is {lm.name} ({lm.fingerprint}); give that model, in the --dtype it was fitted in, or allow any "
                "model of the same shape with --any-model."
            )


def check_format(name: str) -> None:
    """Raise ToxlocError unless the format is "hf", or "peft" and the peft library is installed."""
    if name not in FORMATS:
        raise ToxlocError(f"Unknown format {name!r}; choose one of {', '.join(FORMATS)}.")
    if name == "hf":
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ToxlocError(
            f"Adapters are written with the peft library, which is not installed; run: pip install '{PEFT}'"
        ) from None


def _hooks_error(hooked: Sequence[Any]) -> ToxlocError:
    kinds = ", ".join(sorted(kind for kind, cls in KINDS.items() if cls.bakeable))
    message = (
        f"A saved model does not contain interventions that work with hooks: {', '.join(map(repr, hooked))}. Revert "
        f"them first; these kinds have a form in the weights: {kinds}."
    )
    bakeable = [intervention for intervention in hooked if all(type(part).bakeable for part in intervention.leaves())]
    if bakeable:
        message += f" Apply .baked() instead of {', '.join(map(repr, bakeable))}."
    return ToxlocError(message)


@torch.no_grad()
def _factors(edit: Intervention, copied: LoadedModel, lm: LoadedModel) -> dict[Site, Factors]:
    """Return u and v of ΔW = uᵀ v by edited site, by applying `edit` to `copied`, which is `lm` in float32."""
    names = {site: f"{name}.weight" for site, name in _linear_names(lm).items()}
    with edit.applied(copied):
        changed = {
            name
            for (name, after), before in zip(copied.hf.named_parameters(), lm.hf.parameters(), strict=True)
            if not torch.equal(after, before.float())
        }
        others = sorted(changed - set(names.values()))
        if others:
            raise ToxlocError(
                f"An adapter can hold changes of W_out and W_O only, but {edit!r} changes "
                f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; use export_hf "
                "(--format hf)."
            )
        if not changed:
            raise ToxlocError(f"{edit!r} changes no weight of {lm.name}; there is nothing to export.")
        factors = dict(edit.low_rank()) or {
            site: _factored(copied.W_out(site), lm.W_out(site).float())
            for site, name in names.items()
            if name in changed
        }
    for site, (u, _) in factors.items():
        d_in = lm.at(site).d_in
        if len(u) * (d_in + lm.d_model) >= d_in * lm.d_model:
            raise ToxlocError(
                f"{edit!r} changes W of {site.title} by a matrix of rank {len(u)}: an adapter would be "
                f"larger than the matrix [{d_in}, {lm.d_model}]; use export_hf (--format hf)."
            )
    return factors


def _factored(after: Float[Tensor, "d_mlp d_model"], before: Float[Tensor, "d_mlp d_model"]) -> Factors:
    """Factor after - before by singular values, without those within the rounding error of the matrix."""
    change = (after - before).double()
    rows = change.any(1)  # only the changed rows, so that the decomposition is small if few neurons are scaled
    left, sigma, right = torch.linalg.svd(change[rows], full_matrices=False)
    rank = max(1, int((sigma > torch.finfo(torch.float32).eps * before.norm()).sum()))
    root = sigma[:rank].sqrt()
    u = change.new_zeros(rank, len(change))
    u[:, rows] = (left[:, :rank] * root).T
    return u.float(), (root[:, None] * right[:rank]).float()


def _adapter(copied: LoadedModel, factors: dict[Site, Factors], base: str) -> Any:
    """Wrap the copied model in LoRA layers that hold the factors."""
    from peft import LoraConfig, get_peft_model

    names = {site: name for site, name in _linear_names(copied).items() if site in factors}
    rank = max(len(u) for u, _ in factors.values())
    copied.hf.name_or_path = base  # peft records this name as the adapter's base model
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(names.values()),
        task_type="CAUSAL_LM",
        fan_in_fan_out=isinstance(copied.down_projection(0), Conv1D),
    )
    # The ignored warnings concern peft and transformers, not the caller.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        adapter = get_peft_model(copied.hf, config)
    # Given many names, peft keeps only their common endings, in no fixed order; full names are unambiguous.
    adapter.peft_config["default"].target_modules = list(names.values())
    with torch.no_grad():
        for site, (u, v) in factors.items():
            module: Any = copied.hf.get_submodule(names[site])
            for weight, rows in ((module.lora_A["default"].weight, u), (module.lora_B["default"].weight.T, v)):
                weight.zero_()
                weight[: len(rows)] = rows
    return adapter


def _linear_names(lm: LoadedModel) -> dict[Site, str]:
    """Return the name in `lm.hf` of the module that holds each site's weight."""
    names = {module: name for name, module in lm.hf.named_modules()}
    return {site: names[lm.down_projection(site)] for site in lm.sites()}
