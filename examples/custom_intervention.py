"""An intervention of one's own: clamp neurons to a largest activation (no arguments).

Ten lines make it what the built-in ones are: applied and reverted, judged, saved and loaded again.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import toxloc
from toxloc.models.activations import change, neurons


class Clamp(toxloc.Intervention):
    """Keep chosen neurons' activations at or below a ceiling."""

    kind: ClassVar[str] = "clamp"

    def __init__(self, chosen: Tensor, ceiling: float):
        super().__init__()
        self.chosen, self.ceiling = chosen, ceiling      # [n, 2]: layer and neuron

    def config(self) -> dict[str, Any]:
        return {"ceiling": self.ceiling}

    def check(self, lm: toxloc.LoadedModel) -> None:
        assert int(self.chosen[:, 0].max()) < lm.n_layers

    def _install(self, lm: toxloc.LoadedModel, stack: ExitStack) -> None:
        for layer in set(self.chosen[:, 0].tolist()):
            ceiling = torch.full((lm.d_mlp,), torch.inf)
            ceiling[self.chosen[self.chosen[:, 0] == layer, 1]] = self.ceiling
            change(lm, neurons(lm, layer), ceiling.minimum, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"chosen": self.chosen}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Clamp":
        return cls(tensors["chosen"], config["ceiling"])


def main() -> None:
    lm = toxloc.load_model("toxloc-tiny")
    loc = toxloc.localize(lm, toxloc.load_contrast().limited(100), ("attribution",), draws=0)
    clamp = Clamp(torch.tensor(loc.top_neurons("attribution", 300)), ceiling=0.0)
    prompts = toxloc.load_prompts().limited(12)
    before = toxloc.evaluate(lm, prompts, samples=2)
    with clamp.applied(lm):
        after = toxloc.evaluate(lm, prompts, samples=2)
    assert after.fluency is not None
    print(f"toxic by any: {before.toxicity['any'].rate:.1%} -> {after.toxicity['any'].rate:.1%}, perplexity x "
          f"{after.fluency.perplexity_ratio:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        clamp.save(Path(folder) / "clamp")
        print("loaded again:", toxloc.load_intervention(Path(folder) / "clamp").describe()["ceiling"])


if __name__ == "__main__":
    main()
