"""Take an edited model elsewhere: as a plain Hugging Face folder, or as a PEFT adapter that is exactly the edit."""

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
    """Write the model as it is now, interventions included, as a folder that needs no toxloc.

    It holds safetensors weights, the configurations, the tokenizer, and a model card that says what was edited, on
    what it was fitted, what was measured, and what it is not good for.

    Args:
        lm: the model, with whatever interventions are applied; none is fine.
        folder: to write; it appears only when it is complete.
        overwrite: replace the folder if it holds something.
        effect: what was measured, for the card: `{"before": entry, "after": entry}`, each an `Evaluation.to_dict()` or
            an entry of `runs` in results.json. By default the card says that toxicity was not measured.

    Raises:
        ToxlocError: an applied intervention exists in hooks alone, `effect` is of another method, the folder is not
            empty (and `overwrite` is off), or something cannot be written.

    Example:
        >>> with edit.applied(lm): export_hf(lm, "detoxified")             # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("detoxified")             # doctest: +SKIP
    """
    lm.check_hf("an export")
    hooked = [one for one in lm.interventions if not one.in_weights]
    if hooked:
        raise _lives_in_hooks(hooked)
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
    """Write an intervention that changes nothing but W_out and W_O as a LoRA adapter to the unedited model.

    LoRA adds B A to a linear map's weight, with A [r, d_in] and B [d_model, r]; here Aᵀ Bᵀ is each site's ΔW in
    float32, also for a model in 16 bits. TRNE's own vectors are taken as they are; any other change is factored by a
    singular value decomposition, down to the rounding of W. All sites have one rank, filled up with zeros, and
    lora_alpha equals it, so that the scaling is 1 for every reader of the format.

    Args:
        intervention: what to write; its form in the weights is taken. It need not be applied, and other applied
            interventions play no part.
        lm: the model it is for; unchanged when this returns. A copy of it, in float32, is made meanwhile.
        folder: to write; it appears only when it is complete.
        overwrite: replace the folder if it holds something.
        effect: see `export_hf`.

    Raises:
        ToxlocError: peft is not installed; the intervention lives in hooks, changes something else than W_out, changes
            nothing, or is of so high a rank that the adapter would be larger than the matrices; `effect` is of
            another method; the folder is not empty (and `overwrite` is off) or cannot be written.

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
    """Raise ToxlocError if the intervention, or a part of it, was fitted on another model; by hand is fine."""
    for part in [intervention, *intervention.leaves()]:
        if part.fitted_on and part.fitted_on["fingerprint"] != lm.fingerprint:
            raise ToxlocError(
                f"{part!r} was fitted on {part.fitted_on['name']} (fingerprint {part.fitted_on['fingerprint']}), and "
                f"this is {lm.name} ({lm.fingerprint}); give that model, in the --dtype it was fitted in, or allow any "
                "model of the same shape with --any-model."
            )


def check_format(name: str) -> None:
    """Raise ToxlocError unless something can be exported in this format here: "hf", or "peft" with peft installed."""
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


def _lives_in_hooks(hooked: Sequence[Any]) -> ToxlocError:
    kinds = ", ".join(sorted(kind for kind, cls in KINDS.items() if cls.bakeable))
    message = (
        f"What lives in hooks is not in a saved model: {', '.join(map(repr, hooked))}. Revert it first; these "
        f"kinds have a form in the weights: {kinds}."
    )
    bakeable = [one for one in hooked if all(type(part).bakeable for part in one.leaves())]
    if bakeable:
        message += f" Apply .baked() instead of {', '.join(map(repr, bakeable))}."
    return ToxlocError(message)


@torch.no_grad()
def _factors(edit: Intervention, copied: LoadedModel, lm: LoadedModel) -> dict[Site, Factors]:
    """Return ΔW = uᵀ v of each edited site: what `edit` does to `copied`, which is `lm` in float32."""
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
                f"An adapter can hold changes of W_out and W_O alone, but {edit!r} changes "
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
    """Factor after - before by singular values, leaving out those within the rounding of the matrix."""
    change = (after - before).double()
    rows = change.any(1)  # of scaled neurons only their rows, which makes the decomposition a small one
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
    copied.hf.name_or_path = base  # peft writes it down as the adapter's base model
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(names.values()),
        task_type="CAUSAL_LM",
        fan_in_fan_out=isinstance(copied.down_projection(0), Conv1D),
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # between peft and transformers
        adapter = get_peft_model(copied.hf, config)
    # Of many names peft keeps only common endings, and in no fixed order; the full names say what is meant.
    adapter.peft_config["default"].target_modules = list(names.values())
    with torch.no_grad():
        for site, (u, v) in factors.items():
            module: Any = copied.hf.get_submodule(names[site])
            for weight, rows in ((module.lora_A["default"].weight, u), (module.lora_B["default"].weight.T, v)):
                weight.zero_()
                weight[: len(rows)] = rows
    return adapter


def _linear_names(lm: LoadedModel) -> dict[Site, str]:
    """Names in `hf` of the modules that hold the sites' weights."""
    names = {module: name for name, module in lm.hf.named_modules()}
    return {site: names[lm.down_projection(site)] for site in lm.sites()}
