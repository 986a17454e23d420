"""A custom intervention: limit the activations of neurons to a maximum (no arguments).

Once the class is defined, `Clamp.fit` takes a budget like every method, `toxloc.run` and sweeps accept the name of the
method, and a fitted intervention can be applied, reverted, evaluated, saved and loaded.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import toxloc
from toxloc.interventions.settings import StrengthSettings
from toxloc.models.activations import change, keys_of
from toxloc.support.settings import option


class ClampSettings(StrengthSettings):
    """Settings of the method. The base class defines budget, seed and strength."""

    k: int = option(300, "number of neurons to clamp: those with the highest attribution", ge=1)


class Clamp(toxloc.Intervention):
    """Keep the activations of chosen neurons at or below a ceiling."""

    kind: ClassVar[str] = "clamp"
    title: ClassVar[str] = "Clamp"
    paper: ClassVar[str] = "an example"
    colour: ClassVar[str | None] = "#8a5ac2"
    Settings = ClampSettings

    def __init__(self, chosen: Tensor, ceilings: Tensor):
        super().__init__()
        self.chosen, self.ceilings = chosen, ceilings  # [n, 2] with layer and neuron; [n]

    @classmethod
    def needs(cls, settings: ClampSettings) -> frozenset[str]:
        return frozenset({"moments", "gradients"})

    @classmethod
    def _fit(cls, evidence: toxloc.Evidence, settings: ClampSettings) -> "Clamp":
        statistics = evidence.statistics(cls.needs(settings))
        loc = toxloc.localize(evidence.lm, evidence.pairs, ("attribution",), draws=0, statistics=statistics)
        chosen = torch.tensor(loc.top_neurons("attribution", settings.k))
        sizes = torch.tensor(loc.activation_size)[chosen[:, 0], chosen[:, 1]]

        def at(strength: float) -> "Clamp":  # at 1 the ceiling is 0; towards 0 it becomes infinite
            return cls(chosen, sizes * (1 / strength - 1))

        if settings.strength is not None:
            return at(settings.strength)
        return evidence.strongest(at, settings.budget, first=0.5, limit=1.0)

    def config(self) -> dict[str, Any]:
        return {}

    def check(self, lm: toxloc.LoadedModel) -> None:
        for layer, neuron in self.chosen.tolist():
            lm.check_unit(layer, neuron)

    def _install(self, lm: toxloc.LoadedModel, stack: ExitStack) -> None:
        for layer in set(self.chosen[:, 0].tolist()):
            in_layer = self.chosen[:, 0] == layer
            ceiling = torch.full((lm.d_mlp,), torch.inf)
            ceiling[self.chosen[in_layer, 1]] = self.ceilings[in_layer].float()
            change(lm, keys_of(lm, layer), partial(torch.minimum, ceiling.to(lm.device_of(layer))), stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"chosen": self.chosen, "ceilings": self.ceilings}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Clamp":
        return cls(tensors["chosen"], tensors["ceilings"])


def main() -> None:
    lm = toxloc.load_model("toxloc-tiny")
    evidence = toxloc.Evidence(lm, toxloc.load_contrast().limited(100))
    clamp = Clamp.fit(lm, evidence.pairs, evidence=evidence, budget=0.01)
    prompts = toxloc.load_prompts().limited(12)
    before = toxloc.evaluate(lm, prompts, samples=2)
    with clamp.applied(lm):
        after = toxloc.evaluate(lm, prompts, samples=2)
    assert after.fluency is not None
    print(
        f"toxic by any: {before.toxicity['any'].rate:.1%} -> {after.toxicity['any'].rate:.1%}, perplexity x "
        f"{after.fluency.perplexity_ratio:.4f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        clamp.save(Path(folder) / "clamp")
        again = toxloc.load_intervention(Path(folder) / "clamp")
        print(f"the loaded {again.kind} has the same fingerprint: {again.fingerprint == clamp.fingerprint}")


if __name__ == "__main__":
    main()
