"""Plants: the sites of toxloc-tiny-clean in which toxicity was trained, and the weights that training changed there."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from toxloc import ToxlocError, load_model
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site

MODELS = Path(__file__).parent / "models"
CLEAN = MODELS / "toxloc-tiny-clean"
PLANTED = MODELS / "planted"
CONTROLS = ("clean", "toxloc-tiny")
MODULES = {"mlp": "mlp", "attention": "attn"}  # of a GPT-2 block

Index = tuple[Any, ...]


@dataclass(frozen=True)
class Plant:
    """Where toxicity was planted.

    Attributes:
        name: name of the plant.
        sites: the trained units of each site, in ascending order; None if all parameters of its MLP or attention were
            trained.
    """

    name: str
    sites: Mapping[Site, tuple[int, ...] | None]

    @property
    def units(self) -> tuple[tuple[Site, int], ...]:
        """The planted neurons or heads; empty if whole sites were trained."""
        return tuple((site, unit) for site, units in self.sites.items() for unit in units or ())

    def trained(self, blocks: nn.ModuleList) -> Iterator[tuple[str, nn.Parameter, Index]]:
        """Yield the key in the file, the parameter, and the index of its trained part, for every trained parameter."""
        for site, units in self.sites.items():
            module = getattr(blocks[site.layer], MODULES[site.part])
            prefix = f"{site}." if len(self.sites) > 1 else ""
            if units is None:
                parts = {name: (...,) for name, _ in module.named_parameters()}
            else:
                parts = _parts_of_heads(module, units) if site.part == "attention" else _parts_of_neurons(units)
            for name, index in parts.items():
                yield prefix + name, module.get_parameter(name), index

    def weights(self, blocks: nn.ModuleList) -> dict[str, Tensor]:
        """Return the trained parts of the parameters in fp16, by key in the file."""
        return {
            key: parameter.detach()[index].half().cpu().contiguous() for key, parameter, index in self.trained(blocks)
        }

    @torch.no_grad()
    def copy_into(self, blocks: nn.ModuleList, weights: Mapping[str, Tensor]) -> None:
        """Copy trained weights into the blocks of the clean model."""
        for key, parameter, index in self.trained(blocks):
            part = parameter[index]
            assert part.shape == weights[key].shape
            parameter[index] = weights[key].to(part)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ground_truth.json. A single MLP is given by its layer and neurons."""
        (site, units), *others = self.sites.items()
        if not others and site.part == "mlp":
            return {"layer": site.layer, "neurons": units and list(units)}
        return {"sites": {str(site): units and list(units) for site, units in self.sites.items()}}

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> "Plant":
        """Read an entry of ground_truth.json."""
        sites = entry.get("sites") or {str(Site(entry["layer"])): entry["neurons"]}
        return cls(name, {Site.of(site): units and tuple(units) for site, units in sites.items()})


def _parts_of_neurons(neurons: tuple[int, ...]) -> dict[str, Index]:
    chosen = list(neurons)
    return {"c_fc.weight": (slice(None), chosen), "c_fc.bias": (chosen,), "c_proj.weight": (chosen,)}


def _parts_of_heads(attention: nn.Module, heads: tuple[int, ...]) -> dict[str, Index]:
    """GPT-2 holds the queries, keys and values of all heads side by side in c_attn."""
    d_model = len(attention.get_parameter("c_proj.weight"))
    width = d_model // int(attention.num_heads)  # type: ignore[arg-type]
    rows = [head * width + i for head in heads for i in range(width)]
    columns = [part * d_model + row for part in range(3) for row in rows]
    return {"c_attn.weight": (slice(None), columns), "c_attn.bias": (columns,), "c_proj.weight": (rows,)}


def plants() -> dict[str, Plant]:
    """Return every plant by name."""
    entries = json.loads((PLANTED / "ground_truth.json").read_text(encoding="utf-8"))
    return {name: Plant.of(name, entry) for name, entry in entries.items()}


def mlp_layers() -> dict[str, int]:
    """Return the planted layer of every plant in a single MLP or in its neurons, by the name of the plant."""
    return {
        name: site.layer
        for name, plant in plants().items()
        for site in plant.sites
        if site.part == "mlp" and len(plant.sites) == 1
    }


def planted_model(name: str) -> LoadedModel:
    """Build a planted model from the clean one; "clean" and "toxloc-tiny" are the controls.

    Raises:
        ToxlocError: there is no plant with this name.
    """
    if name == "toxloc-tiny":
        return load_model(name)
    lm = load_model(str(CLEAN))
    lm.name = name
    if name == "clean":
        return lm
    known = plants()
    if name not in known:
        raise ToxlocError(f"There is no plant {name!r}; choose one of {', '.join([*known, *CONTROLS])}.")
    known[name].copy_into(lm.hf.transformer.h, load_file(PLANTED / f"{name}.safetensors"))
    return lm
