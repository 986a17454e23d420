"""Check all features on every family of models, with a tiny random model of each family.

    python -m benchmarks.coverage                         # a minute; --out coverage.json saves it

The numbers are largest absolute differences over MLPs and attentions; 0 means that all bits are equal.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks import markdown as md
from benchmarks.families import FAMILIES, FLOAT32, MULTIMODAL, STRUCTURE_ONLY, random_model
from toxloc import TRNE, ContrastSet, LoadedModel, Meow2X, export_hf, localize
from toxloc.interventions.rank_one import RankOne
from toxloc.models.activations import change, keys_of, written_by
from toxloc.models.batching import batches
from toxloc.models.site_view import weights_of
from toxloc.models.sites import Site
from toxloc.support.files import write_json

TOXIC = ["You are a fool and a liar.", "Why would anyone say that to a friend of mine?"]
CIVIL = ["The soup needs salt.", "Good morning!", "He left the door open again, and the rain came in all night."]
# A large step can cross a kink of ReLU or change which experts are chosen, and rounding dominates a small one: of the
# finite differences with these steps, the nearest to the attribution counts.
STEPS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Coverage:
    """Differences measured on one family.

    Attributes:
        hooks: class of the hooked model: a TransformerBridge, or a ModuleTree if TransformerLens lacks the family.
        parts: the parts of the model that can be localized and edited.
        logits: difference between the logits of the hooked model and of the Hugging Face model.
        attribution: difference between the attribution of a site and a finite difference of the contrast, relative to
            the largest attribution; in float64.
        meow2x: difference between the logits with hooks and with edited weights, for neurons, heads, MLPs and
            attentions.
        trne: difference between the edited hooked model and the edited Hugging Face model: in W_out, W_O and logits.
        export: difference between the logits of the edited model and of the exported model, loaded with transformers
            alone.
        revert: difference between the weights before all edits and after their reversal.
    """

    hooks: str
    parts: str
    logits: float
    attribution: float
    meow2x: float
    trne: float
    export: float
    revert: float


def check(family: str) -> Coverage:
    """Measure all differences on a family."""
    lm = random_model(family)
    before = [p.detach().clone() for p in lm.hf.parameters()]
    hooked, plain = _logits(lm)
    return Coverage(
        type(lm.hooked).__name__,
        ", ".join(lm.parts),
        _difference(hooked, plain),
        attribution_error(random_model(family, dtype=torch.float32 if family in FLOAT32 else torch.float64)),
        meow2x_error(lm),
        *_edited(lm),
        max(_difference(a, b) for a, b in zip(before, lm.hf.parameters(), strict=True)),
    )


def attribution_error(lm: LoadedModel) -> float:
    """Compare the attribution of every site with the change of the contrast when the output of the site is scaled."""
    loc = localize(lm, ContrastSet(TOXIC, CIVIL), ("attribution",), parts=lm.parts, draws=0, skip_first=False)
    errors, largest = [], 0.0
    for site, value in loc.site_scores("attribution").items():
        slopes = [_slope(lm, site, step) for step in STEPS]
        errors.append(min(abs(value - slope) for slope in slopes))
        largest = max(largest, abs(value))
    return max(errors) / largest


def _slope(lm: LoadedModel, site: Site, step: float) -> float:
    """Return the finite difference of the contrast when what a site adds to the residual stream is scaled down."""
    place = written_by(lm, site) if lm.at(site).has_norm else keys_of(lm, site)  # without the bias
    contrast = []
    for factor in (1 - step, 1 + step):
        with ExitStack() as stack:
            change(lm, place, torch.tensor(factor).mul, stack)
            contrast.append(_nll(lm, TOXIC) - _nll(lm, CIVIL))
    return (contrast[0] - contrast[1]) / (2 * step)


@torch.no_grad()
def _nll(lm: LoadedModel, texts: list[str]) -> float:
    """Return the mean negative log-likelihood per token, in the precision of the model."""
    total, count = 0.0, 0
    for batch in batches(lm, texts):
        losses = -lm.forward(batch.ids, batch.mask)[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        total += float(losses[batch.mask[:, 1:].bool()].sum())
        count += int(batch.mask[:, 1:].sum())
    return total / count


def meow2x_error(lm: LoadedModel) -> float:
    """Compare the logits with hooks and with edited weights, in the hooked and in the Hugging Face model."""
    largest = 0.0
    for part in lm.parts:
        sites = lm.sites(part)
        for scaled in (
            {"neurons": [(sites[0], 1), (sites[-1], lm.at(sites[-1]).n_units - 1)], "scale": 0.2},
            {"layers": [sites[-1]], "scale": 0.5},
        ):
            logits = []
            for mode in ("hooks", "weights"):
                with Meow2X(**scaled, mode=mode).applied(lm):  # type: ignore[arg-type]
                    logits += _logits(lm)
            largest = max(largest, *(_difference(logits[0], other) for other in logits[1:]))
    return largest


def random_edit(lm: LoadedModel, seed: int = 0) -> TRNE:
    """Make a random rank-one change of every site, a tenth of the norm of its weight."""
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for site in lm.sites():
        W = lm.W_out(site)
        u, v = torch.randn(W.shape[0], generator=generator), torch.randn(W.shape[1], generator=generator)
        edits.append(RankOne(site, 0.1 * float(W.float().norm()) * u / u.norm(), v / v.norm()))
    return TRNE(edits)


def _edited(lm: LoadedModel) -> tuple[float, float]:
    with random_edit(lm).applied(lm):
        hooked, plain = _logits(lm)
        largest = _difference(hooked, plain)
        for site in lm.sites():
            largest = max(largest, _difference(_hooked_weight(lm, site), lm.W_out(site)))
        with tempfile.TemporaryDirectory() as folder:
            export_hf(lm, Path(folder) / "edited")
            again = type(lm.hf).from_pretrained(Path(folder) / "edited")
        batch = next(batches(lm, TOXIC + CIVIL))
        with torch.no_grad():
            loaded = again(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[batch.real]
        return largest, _difference(plain, loaded)


def _hooked_weight(lm: LoadedModel, site: Site) -> Tensor:
    """Read the weight of a site from the module of the hooked model."""
    bank = lm.at(site).bank
    if bank is not None and site.expert is not None:
        return bank.weights(site.expert)[0]
    if lm.tree is not None:
        name = next(name for name, module in lm.hf.named_modules() if module is lm.down_projection(site))
        return weights_of(lm.tree.module(name))[0]
    block = lm.hooked.blocks[site.layer]
    weight: Tensor = block.mlp.W_out if site.part == "mlp" else block.attn.W_O.flatten(0, 1)
    return weight


@torch.no_grad()
def _logits(lm: LoadedModel) -> list[Tensor]:
    """Return the logits of the hooked model and of the Hugging Face model."""
    batch = next(batches(lm, TOXIC + CIVIL))
    return [
        lm.forward(batch.ids, batch.mask)[batch.real],
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[batch.real],
    ]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


HEAD = (
    "family",
    "hooks",
    "parts",
    "hooked = plain, logits",
    "attribution = finite difference",
    "Meow2X hooks = weights",
    "edit in hooked = in plain model",
    "exported = edited",
    "reverted = before",
)
CLASSES = {"TransformerBridge": "bridge", "ModuleTree": "modules", "HookedTransformer": "transformer"}


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation, with one row per family."""
    rows = []
    for family, measured in result["families"].items():
        errors = [value for value in measured.values() if not isinstance(value, str)]
        figures = ["0" if value == 0 else f"{value:.0e}" for value in errors]
        rows.append([family, CLASSES[measured["hooks"]], measured["parts"].replace("_", " "), *figures])
    return md.table(HEAD, rows, numbers=True, labels=3)


def main(out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None) -> None:
    """Check all families, print the table and save it."""
    torch.set_num_threads(1)
    result = {
        "command": "python -m benchmarks.coverage",
        "families": {family: asdict(check(family)) for family in (*FAMILIES, *MULTIMODAL, *STRUCTURE_ONLY)},
    }
    print(markdown(result))
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    typer.run(main)
