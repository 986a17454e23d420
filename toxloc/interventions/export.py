"""Export an edited model as a Hugging Face folder, or an edit as a PEFT adapter with exactly its ΔW."""

import warnings
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from ..models.quantized import without_weights
from ..models.site_view import SiteView
from ..models.sites import Site
from ..models.weights import Overwritten, recorded
from ..support.files import check_free, new_folder
from ..support.quiet import quiet
from .base import KINDS, Intervention
from .model_card import model_card

Factors = tuple[Float[Tensor, "r d_in"], Float[Tensor, "r d_model"]]
FORMATS = ("hf", "peft")
PEFT = "peft>=0.21,<1"


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
        ToxlocError: an applied intervention works with hooks, or the model is quantized and edited; `effect` was
            measured with another method; the folder is not empty (and `overwrite` is off), or a file cannot be written.

    Example:
        >>> with edit.applied(lm): export_hf(lm, "detoxified")             # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("detoxified")             # doctest: +SKIP
    """
    lm.check_hf("an export")
    if lm.is_quantized and lm.interventions:
        raise ToxlocError(
            f"{lm.name} is quantized, so a saved model cannot contain {', '.join(map(repr, lm.interventions))}; save a "
            "change of low rank as an adapter instead, with export_peft (--format peft)."
        )
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
    rank, padded with zeros, and lora_alpha equals that rank, so that every reader of the format scales by 1. Experts of
    a mixture share a parameter, which peft adapts through `target_parameters`.

    Args:
        intervention: the intervention to save, in the form that edits the weights (`baked`). It need not be applied,
            and other applied interventions are ignored.
        lm: the model that the adapter is for; unchanged when this returns. The edit is applied to it for a moment,
            unless it is of low rank by construction.
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
        factors = _factors(baked, lm)
    with new_folder(folder, overwrite) as partial, quiet():
        _adapter(lm, factors).save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").write_text(card, encoding="utf-8")


def check_fitted_on(intervention: Intervention, lm: LoadedModel) -> None:
    """Raise ToxlocError if the intervention or a part of it was fitted on another model.

    An intervention that was constructed without a fit is accepted for every model.
    """
    for part in [intervention, *intervention.leaves()]:
        if part.fitted_on and not lm.has_fingerprint(part.fitted_on["fingerprint"]):
            raise ToxlocError(
                f"{part!r} was fitted on {part.fitted_on['name']} (fingerprint {part.fitted_on['fingerprint']}), and "
                f"this is {lm.name} ({lm.fingerprint}); give that model, with the --dtype and "
                "--quantize of the fit, or allow any model of the same shape with --any-model."
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
def _factors(edit: Intervention, lm: LoadedModel) -> dict[Site, Factors]:
    """Return u and v of ΔW = uᵀ v by edited site."""
    edit.check(lm)
    factors = {site: (u, v) for site, (u, v) in edit.low_rank().items() if u.any() and v.any()}
    if not edit.low_rank():
        factors = _factors_of_weights(edit, lm)
    if not factors:
        raise ToxlocError(f"{edit!r} changes no weight of {lm.name}; there is nothing to export.")
    for site, (u, _) in factors.items():
        d_in = lm.at(site).d_in
        if len(u) * (d_in + lm.d_model) >= d_in * lm.d_model:
            raise ToxlocError(
                f"{edit!r} changes W of {site.title} by a matrix of rank {len(u)}: an adapter would be "
                f"larger than the matrix [{d_in}, {lm.d_model}]; use export_hf (--format hf)."
            )
    return factors


def _factors_of_weights(edit: Intervention, lm: LoadedModel) -> dict[Site, Factors]:
    """Return the factors of the changes that an edit makes when it is applied to weights in float32."""
    names = _parameter_names(lm)
    with recorded() as records, edit.applied(lm):
        changed = _changed_parameters(lm, records)
    others = sorted(changed - set(names.values()))
    if others:
        raise ToxlocError(
            f"An adapter can hold changes of W_out and W_O only, but {edit!r} changes "
            f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; use export_hf (--format hf)."
        )
    with _in_float32(lm, changed), recorded() as records, edit.applied(lm):
        before = {record.weight.data_ptr(): record.before for record in reversed(records)}
        views = {site: lm.W_out(site) for site, name in names.items() if name in changed}
        old = {site: before[W.data_ptr()]() for site, W in views.items() if W.data_ptr() in before}
        return {site: _factored(views[site], W) for site, W in old.items() if not torch.equal(views[site], W)}


def _changed_parameters(lm: LoadedModel, records: Sequence[Overwritten]) -> set[str]:
    """Return the names in `lm.hf` of the parameters that differ from their recorded values."""
    starts = sorted((parameter.data_ptr(), name) for name, parameter in lm.hf.named_parameters())
    changed = [record.weight for record in records if not torch.equal(record.weight, record.before())]
    return {starts[bisect_right(starts, weight.data_ptr(), key=itemgetter(0)) - 1][1] for weight in changed}


@contextmanager
def _in_float32(lm: LoadedModel, names: Collection[str]) -> Iterator[None]:
    """Keep some parameters of a model in float32 while the block runs. The model cannot run meanwhile."""
    kept = {name: lm.hf.get_parameter(name).data for name in names}
    try:
        for name, values in kept.items():
            lm.hf.get_parameter(name).data = values.float()
        yield
    finally:
        for name, values in kept.items():
            lm.hf.get_parameter(name).data = values


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


def _adapter(lm: LoadedModel, factors: dict[Site, Factors]) -> Any:
    """Wrap the model, without its weights, in LoRA layers that hold the factors."""
    from peft import LoraConfig, get_peft_model

    hf = without_weights(lm.hf)
    names = {site: name.rsplit(".", 1)[0] for site, name in _parameter_names(lm).items() if site in factors}
    # In a mixture, peft takes a linear map whose name its experts once had for experts, so it gets parameters instead.
    mixture = any(site.expert is not None for site in lm.sites())
    linears = [] if mixture else list(names.values())
    parameters = list(dict.fromkeys(_parameter_names(lm)[site] for site in names)) if mixture else None
    rank = max(len(u) for u, _ in factors.values())
    hf.name_or_path = lm.hf.name_or_path or lm.name  # peft records this name as the adapter's base model
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=linears,
        target_parameters=parameters,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(hf.get_submodule(name), Conv1D) for name in linears),
    )
    # The ignored warnings concern peft and transformers, not the caller.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        try:
            adapter = get_peft_model(hf, config)
        except ValueError as error:  # such as the output map of a Mamba block, which its fused kernel does not call
            raise ToxlocError(f"peft cannot adapt {lm.name}: {error} Use export_hf (--format hf).") from error
    # Given many names, peft keeps only their common endings, in no fixed order; full names are unambiguous.
    adapter.peft_config["default"].target_modules = linears
    with torch.no_grad():
        for name in dict.fromkeys(names.values()):
            module: Any = hf.get_submodule(name)
            for part in (module.lora_A, module.lora_B):
                part["default"].weight = nn.Parameter(torch.zeros(part["default"].weight.shape))
        for site, (u, v) in factors.items():
            module = hf.get_submodule(names[site])
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight.T
            if site.expert is not None:
                A, B, u, v = _expert_factors(module, lm.at(site), A, B, u, v)
            A[: len(u)] = u
            B[: len(v)] = v
    return adapter


def _expert_factors(module: Any, view: SiteView, A: Tensor, B: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Return views of peft's factors that belong to one expert, and the vectors that go there.

    peft keeps the factors of all experts in one matrix each, and takes the parameter as [experts, outputs, inputs]
    unless the module says that it is transposed, which Llama 4's module does not.
    """
    assert view.hf_bank is not None
    n_experts, expert = view.hf_bank.n_experts, view.site.expert
    A = A.view(n_experts, -1, A.shape[1])[expert]
    B = B.unflatten(0, (-1, n_experts))[:, expert]
    first, second = (u, v) if view.hf_bank.is_transposed else (v, u)  # the change of the parameter is firstᵀ second
    return (A, B, second, first) if module._did_swap_in_out_features else (A, B, first, second)


def _parameter_names(lm: LoadedModel) -> dict[Site, str]:
    """Return the name in `lm.hf` of the parameter that holds each site's weight."""
    names = {module: name for name, module in lm.hf.named_modules()}
    parameters: dict[Site, str] = {}
    for site in lm.sites():
        bank = lm.at(site).hf_bank
        parameter = "weight" if bank is None else bank.parameter
        parameters[site] = f"{names[lm.down_projection(site)]}.{parameter}"
    return parameters
