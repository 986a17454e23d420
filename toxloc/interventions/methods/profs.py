"""ProFS: project the directions in which toxic and neutral texts differ out of the upper half's W_out."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ToxlocError
from ...support.settings import option
from ...texts.contrast import ContrastSet
from ..base import Intervention, check_layers
from ..settings import StrengthSettings

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from ...models.loaded import LoadedModel
    from ..evidence import Evidence


class ProFSSettings(StrengthSettings):
    """Settings of ProFS; the paper's strength is 1. Unpaired texts are paired at random, with `seed`."""

    strength: float | None = option(
        None, "fixed strength, at most 1 (the paper's strength); if given, the budget is not used", gt=0, le=1
    )
    k: int = option(2, "number of directions per layer; the paper uses 2 for GPT-2 medium and 10 for Mistral-7B", ge=1)


class ProFS(Intervention):
    """Project the directions V_1 to V_k out of W_out in the MLPs of the upper half of the model.

    W_out becomes W_out (I - strength * sum over i of V_i V_iᵀ). For each of these layers, X⁺ and X⁻ [n_pairs, d_model]
    are the residual stream after the block on toxic and on neutral texts, averaged over a text's real tokens except the
    first. The top right singular vector μ of X⁺, which all texts share, is removed from both: D = (X⁺ - X⁻)(I - μμᵀ).
    V_1 to V_k are the top right singular vectors of D; dividing D by 2, as the paper does, would not change them. Only
    W_out is edited, since b_out adds the same vector for every text.

    The formula is the same where a norm follows the MLP (gemma2, gemma3, olmo2), but there the norm's gain changes
    the direction of W_out's output, and part of V remains.

    `ProFS.fit` computes the directions from texts; the constructor takes given directions.

    Args:
        directions: for each layer, V_1 to V_k as orthonormal rows.
        strength: over 0 (no change) and at most 1 (projected out, as in the paper).

    Raises:
        ToxlocError: no directions, rows that are not orthonormal, or a strength outside (0, 1].

    Source: Uppaal et al. 2024, arXiv:2405.13967.

    Example:
        >>> p = ProFS.fit(lm, toxloc.load_contrast())      # doctest: +SKIP
        >>> with p.applied(lm): ...                        # doctest: +SKIP
    """

    kind: ClassVar[str] = "profs"
    title: ClassVar[str] = "ProFS"
    paper: ClassVar[str] = "ProFS, Uppaal et al. 2024, arXiv:2405.13967"
    Settings = ProFSSettings
    bakeable: ClassVar[bool] = True

    def __init__(self, directions: dict[int, Float[Tensor, "k d_model"]], strength: float = 1.0):
        import torch

        from ..directions import check_strength

        super().__init__()
        if not directions:
            raise ToxlocError("ProFS needs directions for at least one layer.")
        check_strength(strength)
        for layer, V in directions.items():
            if not (V.double() @ V.double().T - torch.eye(len(V), device=V.device)).abs().max() < 1e-4:
                raise ToxlocError(
                    f"The directions of ProFS must have length 1 and be orthogonal; those of layer {layer} "
                    "are not. Use right singular vectors."
                )
        self.directions = {int(layer): directions[layer].float().contiguous() for layer in sorted(directions)}
        self.strength = float(strength)

    def __repr__(self) -> str:
        return f"ProFS(layers={list(self.directions)}, strength={self.strength:g})"

    @classmethod
    def _fit(cls, evidence: Evidence, settings: ProFSSettings) -> ProFS:
        lm, pairs, k = evidence.lm, evidence.pairs, settings.k
        n_pairs = min(len(pairs.toxic), len(pairs.neutral))
        if not 1 <= k <= min(n_pairs, lm.d_model - 1):
            raise ToxlocError(
                f"k={k} is out of range; {n_pairs} pairs and d_model={lm.d_model} allow 1 to "
                f"{min(n_pairs, lm.d_model - 1)} directions. Change k or give more contrast texts."
            )
        on_pairs = evidence
        if not pairs.paired:
            draw = random.Random(settings.seed)
            on_pairs = evidence.on(
                ContrastSet(draw.sample(pairs.toxic, n_pairs), draw.sample(pairs.neutral, n_pairs), pairs.name)
            )
        layers = range(lm.n_layers // 2, lm.n_layers)
        differing = dict(zip(layers, (_differing(*sides, k) for sides in on_pairs.residual_sides(layers)), strict=True))

        def scaled(strength: float) -> ProFS:
            profs = cls({layer: V for layer, (V, _) in differing.items()}, strength)
            profs.note_fit(
                lm,
                {
                    "k": k,
                    "n_pairs": n_pairs,
                    "strength": strength,
                    "explained": {str(layer): share for layer, (_, share) in differing.items()},
                },
            )
            return profs

        return evidence.at_strength(scaled, settings, first=1.0, limit=1.0)

    @property
    def in_weights(self) -> bool:
        """Always True: the method edits W_out."""
        return True

    def config(self) -> dict[str, Any]:
        """Return the layers and the strength; the directions are in the tensors."""
        return {"layers": list(self.directions), "strength": self.strength}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer is not in the model or the directions have a length other than d_model."""
        from ..directions import check_width

        check_layers(lm, list(self.directions))
        for V in self.directions.values():
            check_width(lm, self, V)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.weights import overwrite
        from ..directions import without

        for site in lm.sites_of_choice("mlp"):
            if site.layer in self.directions:
                W = lm.W_out(site)
                overwrite(W, without(W.float(), self.directions[site.layer].to(W.device), self.strength), stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {str(layer): V for layer, V in self.directions.items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> ProFS:
        return cls({layer: tensors[str(layer)] for layer in config["layers"]}, config["strength"])


def _differing(
    toxic: Float64[Tensor, "n_pairs d_model"], neutral: Float64[Tensor, "n_pairs d_model"], k: int
) -> tuple[Float[Tensor, "k d_model"], float]:
    """Return V_1 to V_k as rows, and the share of the squared norm of D that lies along them."""
    import torch

    from ..directions import without

    shared = torch.linalg.svd(toxic, full_matrices=False).Vh[:1]
    D = without(toxic - neutral, shared, 1.0)
    _, sizes, Vh = torch.linalg.svd(D, full_matrices=False)
    if sizes[k - 1] <= 1e-5 * toxic.norm():
        raise ToxlocError(
            f"The toxic and the neutral texts differ in fewer than k={k} directions; give other contrast "
            "texts or a smaller k."
        )
    return Vh[:k].float(), float(sizes[:k].square().sum() / sizes.square().sum())
