"""Directional ablation: take one direction out of everything attention and MLPs write to the residual stream."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from jaxtyping import Float, Float64
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ...errors import ToxlocError
from ...models.activations import attention_write, change, mlp_write
from ...models.architectures import architecture
from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import Intervention, check_layers, check_mode, overwrite
from ..budget import Budget
from ..directions import both_sides, check_strength, check_unit, check_width, mean_difference, without
from ..tuning import tune


class DirectionalAblation(Intervention):
    """x becomes x - strength * r rᵀx, with x what attention and MLP of the chosen layers add to the residual stream.

    r [d_model], of length 1, is the difference of means toxic - neutral of the residual stream after one block,
    averaged over a text's real tokens but the first; computed in float64. With `mode="weights"` the maps that write x
    are edited: W becomes W (I - strength * r rᵀ) for the attention's output map and for W_out, and their biases
    likewise. That is the same thing, but not where a norm follows attention and MLP (gemma2, gemma3, olmo2): these need
    hooks.

    What the embedding writes is left alone: many models share its matrix with the unembedding, where an edit would
    change which tokens can be said. So, even at strength 1, the stream keeps what the embedding and the layers that are
    not chosen write along r.

    Make one with `DirectionalAblation.fit`; the constructor takes a ready direction.

    Args:
        direction: r; of length 1.
        layers: whose writes are ablated.
        strength: over 0 and up to 1 (the paper's: projected out).
        mode: "hooks" places hooks on both module trees of the model; "weights" edits the weights.

    Raises:
        ToxlocError: a direction not of length 1, no layers, a strength outside (0, 1], an unknown mode.

    Source: Arditi et al. 2024, arXiv:2406.11717.

    Example:
        >>> a = DirectionalAblation.fit(lm, toxloc.load_contrast(), budget=0.01)      # doctest: +SKIP
        >>> with a.applied(lm): ...                                                   # doctest: +SKIP
    """

    kind: ClassVar[str] = "ablation"
    bakeable: ClassVar[bool] = True

    def __init__(self, direction: Float[Tensor, " d_model"], layers: Sequence[int], strength: float = 1.0, *,
                 mode: str = "hooks"):
        super().__init__()
        check_unit(direction)
        check_strength(strength)
        check_mode(mode)
        if not layers:
            raise ToxlocError("Directional ablation needs layers= whose writes to ablate; none were given.")
        self.direction, self.layers = direction.float(), sorted({int(layer) for layer in layers})
        self.strength, self.mode = float(strength), mode

    def __repr__(self) -> str:
        return f"DirectionalAblation(layers={self.layers}, strength={self.strength:g}, mode={self.mode!r})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, layer: int | None = None, layers: Sequence[int] | None = None,
            mode: str = "hooks", budget: float | Budget | None = 0.01,
            neutral: NeutralText | None = None) -> "DirectionalAblation":
        """Find the direction and its strength.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the texts whose means are compared; they need not be paired.
            layer: the block after which r is read. By default, of all but the last 20%, the one where the means lie
                furthest apart along their own r, in pooled standard deviations of the texts along it. The same texts
                give r and the distance, so distances are on the large side, in all layers alike.
            layers: whose writes are ablated; by default all but the last 20%, which turn the stream into predictions.
            mode: see the class.
            budget: the strength is the largest up to 1 that costs no more than this on `neutral.tune`; a number is the
                relative rise of perplexity. None for a strength of 1.
            neutral: everyday text to tune on; by default the built-in one.

        Raises:
            ToxlocError: an unknown mode or one that the family has not, no such layer, one text a side and no layer
                given, no difference between the two sides, no strength within the budget.
        """
        check_mode(mode)
        if mode == "weights":
            _check_writes_are_bare(lm)
        if layers is not None and not layers:
            raise ToxlocError("layers=[] leaves nothing to ablate; give layers, or leave it out for all but the last "
                              "20%.")
        limits = None if budget is None else Budget.of(budget)
        early = range(lm.n_layers - lm.n_layers // 5)
        layers = early if layers is None else layers
        candidates = early if layer is None else [layer]
        check_layers(lm, [*layers, *candidates])
        if layer is None and len(pairs.toxic) == len(pairs.neutral) == 1:
            raise ToxlocError("One text a side has no spread, by which the layer to read r after is chosen; give "
                              "layer= or more contrast text.")
        separations, directions = {}, {}
        for i, sides in zip(candidates, both_sides(lm, pairs, candidates), strict=True):
            v = mean_difference(*sides)
            directions[i] = v / v.norm()
            separations[i] = _separation(*sides, directions[i])
        best = max(separations, key=lambda i: separations[i])

        def scaled(strength: float) -> "DirectionalAblation":
            ablation = cls(directions[best].float(), layers, strength, mode=mode)
            ablation.note_fit(lm, {"read_after": best, "strength": strength,
                                   "separation": {str(i): value for i, value in separations.items()}}, pairs)
            return ablation

        return scaled(1.0) if limits is None else tune(lm, scaled, limits, neutral, first=1.0, limit=1.0)

    @property
    def in_weights(self) -> bool:
        """Whether its mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> "DirectionalAblation":
        """Return the same with `mode="weights"`."""
        baked = DirectionalAblation(self.direction, self.layers, self.strength, mode="weights")
        baked.fitted_on, baked.record = self.fitted_on, self.record
        return baked

    def config(self) -> dict[str, Any]:
        """Return the settings; the direction is in the tensors."""
        return {"layers": self.layers, "strength": self.strength, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if it does not fit the model's shape, or lies in weights and the family has norms after."""
        check_layers(lm, self.layers)
        check_width(lm, self, self.direction)
        if self.mode == "weights":
            _check_writes_are_bare(lm)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        def taken_out(x: Tensor) -> Tensor:
            return without(x, self.direction[None].to(x.device), self.strength)

        for layer in self.layers:
            if self.mode == "weights":
                for weight in _writing(lm, layer):
                    overwrite(weight, taken_out(weight.float()), stack)
                continue
            for site in (attention_write(lm, layer), mlp_write(lm, layer)):
                change(lm, site, taken_out, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "DirectionalAblation":
        return cls(tensors["direction"], config["layers"], config["strength"], mode=config["mode"])


def _writing(lm: LoadedModel, layer: int) -> Iterator[Float[Tensor, "*some d_model"]]:
    """Live views of the matrices and biases by which attention and MLP write, the residual stream's axis last."""
    attention = lm.block(layer).get_submodule(architecture(lm.model_type).attention)
    weight = attention.get_parameter("weight")
    yield weight if isinstance(attention, Conv1D) else weight.T
    yield lm.W_out(layer)
    for bias in (attention.bias, lm.b_out(layer)):
        if isinstance(bias, Tensor):
            yield bias


def _check_writes_are_bare(lm: LoadedModel) -> None:
    """Raise ToxlocError if a norm follows attention or MLP: it would turn what the edited weights write."""
    family = architecture(lm.model_type)
    if family.post_norm or family.attention_norm:
        raise ToxlocError(f"In {lm.name} ({lm.model_type}) a norm follows attention and MLP, so directional "
                          'ablation has no equal in the weights; use mode="hooks".')


def _separation(toxic: Float64[Tensor, "n_toxic d_model"], neutral: Float64[Tensor, "n_neutral d_model"],
                r: Float64[Tensor, " d_model"]) -> float:
    """Distance of the two means along r, in pooled standard deviations along r."""
    a, b = toxic @ r, neutral @ r
    within = (a - a.mean()).square().sum() + (b - b.mean()).square().sum()
    return float((a.mean() - b.mean()) / (within / (len(a) + len(b))).sqrt())
