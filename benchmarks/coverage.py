"""Check all features on every family of models, with a tiny random model of each family.

    python -m benchmarks.coverage                         # a minute; --out coverage.json saves it

The numbers are largest absolute differences over MLPs and attentions; 0 means that all bits are equal.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import markdown as md
from benchmarks.families import SIZES, random_model
from toxloc import TRNE, ContrastSet, LoadedModel, Meow2X, NeutralText, export_hf, localize
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.localization.result import Localization
from toxloc.models.activations import change, keys_of, written_by
from toxloc.models.batching import batches
from toxloc.models.site_view import weights_of
from toxloc.models.sites import Part, Site
from toxloc.support.files import write_json

TOXIC = ["You are a fool and a liar.", "Why would anyone say that to a friend of mine?"]
CIVIL = ["The soup needs salt.", "Good morning!", "He left the door open again, and the rain came in all night."]
FIT, TUNE, CHECK = (
    [f"The {word} stood beside the {noun} for a long time." for word in ("cat", "chair", "boy")]
    for noun in ("house", "road", "sea")
)
NEUTRAL = NeutralText(FIT, TUNE, CHECK)
STEP = 0.01


@dataclass(frozen=True)
class Coverage:
    """Differences measured on one family.

    Attributes:
        hooks: class of the hooked model.
        logits: difference between the logits of the hooked model and of the Hugging Face model.
        attribution: difference between the attribution of a site and a finite difference of the contrast, relative to
            the largest finite difference of its part.
        meow2x: difference between the logits with hooks and with edited weights, for neurons, heads, MLPs and
            attentions.
        trne: difference between the edited hooked model and the edited Hugging Face model: in W_out, W_O and logits.
        export: difference between the logits of the edited model and of the exported model, loaded with transformers
            alone.
        revert: difference between the weights before all edits and after their reversal.
    """

    hooks: str
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
        _difference(hooked, plain),
        attribution_error(lm),
        meow2x_error(lm),
        *_edited(lm),
        max(_difference(a, b) for a, b in zip(before, lm.hf.parameters(), strict=True)),
    )


def attribution_error(lm: LoadedModel) -> float:
    """Compare the attribution of every site with the change of the contrast when the output of the site is scaled."""
    loc = localize(lm, ContrastSet(TOXIC, CIVIL), ("attribution",), parts=get_args(Part), draws=0, skip_first=False)
    return max(_slope_error(lm, loc, part) for part in loc.parts)


def _slope_error(lm: LoadedModel, loc: Localization, part: str) -> float:
    attribution = torch.tensor(loc.layer_scores("attribution", part))
    slopes = []
    for site in loc.sites(part):
        place = written_by(lm, site) if lm.at(site).has_norm else keys_of(lm, site)  # without the bias
        contrast = []
        for factor in (1 - STEP, 1 + STEP):
            with ExitStack() as stack:
                change(lm, place, torch.tensor(factor).mul, stack)
                contrast.append(mean_nll(lm, TOXIC) - mean_nll(lm, CIVIL))
        slopes.append((contrast[0] - contrast[1]) / (2 * STEP))
    expected = torch.tensor(slopes, dtype=attribution.dtype)
    return _difference(attribution, expected) / float(expected.abs().max())


def meow2x_error(lm: LoadedModel) -> float:
    """Compare the logits with hooks and with edited weights, in the hooked and in the Hugging Face model."""
    first, last = (Site(layer, "attention") for layer in range(2))
    largest = 0.0
    for scaled in (
        {"neurons": [(0, 1), (1, 2)], "scale": 0.2},
        {"layers": [1], "scale": 0.5},
        {"neurons": [(first, 0), (last, 1)], "scale": 0.2},
        {"layers": [last], "scale": 0.5},
    ):
        logits = []
        for mode in ("hooks", "weights"):
            with Meow2X(**scaled, mode=mode).applied(lm):  # type: ignore[arg-type]
                logits += _logits(lm)
        largest = max(largest, *(_difference(logits[0], other) for other in logits[1:]))
    return largest


def _edited(lm: LoadedModel) -> tuple[float, float]:
    with TRNE.fit(lm, ContrastSet(TOXIC, CIVIL), norm=0.1, sites="all", neutral=NEUTRAL).applied(lm):
        hooked, plain = _logits(lm)
        largest = _difference(hooked, plain)
        for site in lm.sites():
            largest = max(largest, _difference(_hooked_weight(lm, site), weights_of(lm.down_projection(site))[0]))
        with tempfile.TemporaryDirectory() as folder:
            export_hf(lm, Path(folder) / "edited")
            again = AutoModelForCausalLM.from_pretrained(Path(folder) / "edited")
        batch = next(batches(lm, TOXIC + CIVIL))
        with torch.no_grad():
            loaded = again(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real]
        return largest, _difference(plain, loaded)


def _hooked_weight(lm: LoadedModel, site: Site) -> Tensor:
    """Read the weight of a site from the module of the hooked model."""
    block = lm.hooked.blocks[site.layer]
    if lm.is_bridge:
        linear = block.mlp.out if site.part == "mlp" else block.attn.o
        return weights_of(linear.original_component)[0]
    weight: Tensor = block.mlp.W_out if site.part == "mlp" else block.attn.W_O.flatten(0, 1)
    return weight


@torch.no_grad()
def _logits(lm: LoadedModel) -> list[Tensor]:
    """Return the logits of the hooked model and of the Hugging Face model."""
    batch = next(batches(lm, TOXIC + CIVIL))
    return [
        lm.forward(batch.ids, batch.mask)[batch.real],
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
    ]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


HEAD = (
    "family",
    "hooked = plain, logits",
    "attribution = finite difference",
    "Meow2X hooks = weights",
    "TRNE in hooked = in plain model",
    "exported = edited",
    "reverted = before",
)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation, with one row per family."""
    rows = [
        [family, *("0" if value == 0 else f"{value:.0e}" for value in measured.values() if not isinstance(value, str))]
        for family, measured in result["families"].items()
    ]
    return md.table(HEAD, rows, numbers=True)


def main(out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None) -> None:
    """Check all families, print the table and save it."""
    torch.set_num_threads(1)
    result = {
        "command": "python -m benchmarks.coverage",
        "families": {family: asdict(check(family)) for family in SIZES},
    }
    print(markdown(result))
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    typer.run(main)
