"""Directional ablation: remove one direction from all that attention and MLPs write to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator

from ...errors import ToxlocError
from ...support.settings import option
from ..base import Intervention, check_layers
from ..settings import Mode, StrengthSettings, check_mode

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from ...models.loaded import LoadedModel
    from ..evidence import Evidence


def _not_empty(layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if layers is not None and not layers:
        raise ToxlocError("layers=[] leaves nothing to ablate; give layers, or omit it for all but the last 20%.")
    return layers


class AblationSettings(StrengthSettings):
    """Settings of directional ablation; a strength of 1, as in the paper, projects the direction out."""

    strength: float | None = option(None, "fixed strength, at most 1; if given, the budget is not used", gt=0, le=1)
    layer: int | None = option(
        None,
        "block after which the direction is computed; default: the block, among all but the last 20%, where the means "
        "of toxic and neutral texts are furthest apart in pooled standard deviations",
        ge=0,
    )
    layers: Annotated[tuple[int, ...] | None, AfterValidator(_not_empty)] = option(
        None,
        "layers in which attention and MLP are ablated; default: all but the last 20%, which turn the residual stream "
        "into predictions",
    )
    mode: Mode = option("hooks", "hooks: change the activations with hooks; weights: edit the weights")


class DirectionalAblation(Intervention):
    """Remove a direction r from what attention and MLP of chosen layers add to the residual stream.

    Their output x becomes x - strength * r rᵀx. r [d_model], of length 1, is the difference of means, toxic minus
    neutral, of the residual stream after one block, averaged over a text's real tokens except the first and computed in
    float64. With `mode="weights"` the maps that write x are edited: W becomes W (I - strength * r rᵀ) for W_O and
    W_out, and their biases are multiplied by the same matrix. This equals the hooks, except where a norm follows
    attention and MLP (gemma2, gemma3, olmo2): such models need hooks.

    The output of the embedding is not changed: many models share its matrix with the unembedding, where an edit would
    change which tokens can be generated. So even at strength 1 the residual stream keeps the part along r that the
    embedding and the other layers write.

    `DirectionalAblation.fit` computes the direction from texts; the constructor takes a given direction.

    Args:
        direction: the direction r; of length 1.
        layers: layers in which attention and MLP are ablated.
        strength: over 0 and at most 1 (projected out, as in the paper).
        mode: "hooks" adds hooks to both module trees, `lm.hooked` and `lm.hf`; "weights" edits the weights.

    Raises:
        ToxlocError: a direction not of length 1, no layers, a strength outside (0, 1], or an unknown mode.

    Source: Arditi et al. 2024, arXiv:2406.11717.

    Example:
        >>> a = DirectionalAblation.fit(lm, toxloc.load_contrast(), budget=0.01)      # doctest: +SKIP
        >>> with a.applied(lm): ...                                                   # doctest: +SKIP
    """

    kind: ClassVar[str] = "ablation"
    title: ClassVar[str] = "directional ablation"
    paper: ClassVar[str] = "directional ablation, Arditi et al. 2024, arXiv:2406.11717"
    Settings = AblationSettings
    bakeable: ClassVar[bool] = True

    def __init__(
        self, direction: Float[Tensor, " d_model"], layers: Sequence[int], strength: float = 1.0, *, mode: str = "hooks"
    ):
        from ..directions import check_strength, check_unit

        super().__init__()
        check_unit(direction)
        check_strength(strength)
        check_mode(mode)
        if not layers:
            raise ToxlocError("Directional ablation needs layers to ablate; none were given. Give layers=.")
        self.direction, self.layers = direction.float(), sorted({int(layer) for layer in layers})
        self.strength, self.mode = float(strength), mode

    def __repr__(self) -> str:
        return f"DirectionalAblation(layers={self.layers}, strength={self.strength:g}, mode={self.mode!r})"

    @classmethod
    def _fit(cls, evidence: Evidence, settings: AblationSettings) -> DirectionalAblation:
        from ..directions import mean_difference

        lm, pairs, mode = evidence.lm, evidence.pairs, settings.mode
        if mode == "weights":
            _check_no_norm_follows(lm)
        early = range(lm.n_layers - lm.n_layers // 5)
        layers = early if settings.layers is None else settings.layers
        candidates = early if settings.layer is None else [settings.layer]
        check_layers(lm, [*layers, *candidates])
        if settings.layer is None and len(pairs.toxic) == len(pairs.neutral) == 1:
            raise ToxlocError(
                "With one text per side there is no spread by which to choose the layer for the direction; give "
                "layer= or more contrast texts."
            )
        separations, directions = {}, {}
        for i, sides in zip(candidates, evidence.residual_sides(candidates), strict=True):
            v = mean_difference(*sides)
            directions[i] = v / v.norm()
            separations[i] = _separation(*sides, directions[i])
        best = max(separations, key=lambda i: separations[i])

        def scaled(strength: float) -> DirectionalAblation:
            ablation = cls(directions[best].float(), layers, strength, mode=mode)
            ablation.note_fit(
                lm,
                {
                    "read_after": best,
                    "strength": strength,
                    "separation": {str(i): value for i, value in separations.items()},
                },
            )
            return ablation

        return evidence.at_strength(scaled, settings, first=1.0, limit=1.0)

    @property
    def in_weights(self) -> bool:
        """Whether the mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> DirectionalAblation:
        """Return the same ablation with `mode="weights"`."""
        return DirectionalAblation(self.direction, self.layers, self.strength, mode="weights").with_fit_of(self)

    def config(self) -> dict[str, Any]:
        """Return the settings; the direction is in the tensors."""
        return {"layers": self.layers, "strength": self.strength, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if it does not fit the model's shape, or edits weights that a norm follows."""
        from ..directions import check_width

        check_layers(lm, self.layers)
        check_width(lm, self, self.direction)
        if self.mode == "weights":
            _check_no_norm_follows(lm)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.activations import change, written_by
        from ...models.weights import overwrite
        from ..directions import without

        def ablated(x: Tensor) -> Tensor:
            return without(x, self.direction[None].to(x.device), self.strength)

        for site in (site for site in lm.sites() if site.layer in self.layers):
            if self.mode == "weights":
                for weight in lm.at(site).biased():
                    overwrite(weight, ablated(weight.float()), stack)
            else:
                change(lm, written_by(lm, site), ablated, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> DirectionalAblation:
        return cls(tensors["direction"], config["layers"], config["strength"], mode=config["mode"])


def _check_no_norm_follows(lm: LoadedModel) -> None:
    """Raise ToxlocError if a norm follows attention or MLP, since its gain changes the ablated direction."""
    if any(lm.at(site).has_norm for site in lm.sites()):
        raise ToxlocError(
            f"In {lm.name} ({lm.model_type}) a norm follows attention and MLP, so directional "
            'ablation has no form in the weights; use mode="hooks".'
        )


def _separation(
    toxic: Float64[Tensor, "n_toxic d_model"],
    neutral: Float64[Tensor, "n_neutral d_model"],
    r: Float64[Tensor, " d_model"],
) -> float:
    """Return the distance between the two means along r, in pooled standard deviations along r."""
    a, b = toxic @ r, neutral @ r
    within = (a - a.mean()).square().sum() + (b - b.mean()).square().sum()
    return float((a.mean() - b.mean()) / (within / (len(a) + len(b))).sqrt())
