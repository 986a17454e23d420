"""ProFS: project the directions in which toxic and neutral texts differ out of what the upper MLPs write."""

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
    """Settings of ProFS; a strength of 1 is the paper's. Unpaired texts are paired at random, by `seed`."""

    strength: float | None = option(
        None, "sets the strength outright, up to 1, the paper's; the budget is then not used", gt=0, le=1
    )
    k: int = option(2, "directions per layer; the paper has 2 for GPT-2 medium and 10 for Mistral-7B", ge=1)


class ProFS(Intervention):
    """W_out becomes W_out (I - strength * sum over i of V_i V_iᵀ) in the MLPs of the upper half of the model.

    For each of these layers, X⁺ and X⁻ [n_pairs, d_model] hold the residual stream after the block, averaged over the
    real tokens but the first of toxic and of neutral texts. The top right singular vector μ of X⁺, which is what all
    texts share, is taken out of both: D = (X⁺ - X⁻)(I - μμᵀ). V_1 to V_k are the top right singular vectors of D;
    dividing D by 2, as the paper does, would not change them. Only W_out is edited: b_out writes the same whatever the
    text.

    The formula is the same where a norm follows the MLP (gemma2, gemma3, olmo2), but there its gain turns what W_out
    writes, and some of V comes back.

    Make one with `ProFS.fit`; the constructor takes ready directions.

    Args:
        directions: for each layer, V_1 to V_k as rows; of length 1 and at right angles.
        strength: from 0 (left alone) to 1 (the paper's: projected out).

    Raises:
        ToxlocError: no directions, rows that are not orthonormal, a strength outside (0, 1].

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
                    f"ProFS's directions must be of length 1 and at right angles; those of layer {layer} "
                    "are not. Take right singular vectors."
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
                f"k={k} directions were asked for; {n_pairs} pairs and d_model={lm.d_model} give 1 to "
                f"{min(n_pairs, lm.d_model - 1)}. Change k or give more contrast text."
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
        """Always: it edits W_out."""
        return True

    def config(self) -> dict[str, Any]:
        """Return layers and strength; the directions are in the tensors."""
        return {"layers": list(self.directions), "strength": self.strength}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer is not in the model or the directions have another length."""
        from ..directions import check_width

        check_layers(lm, list(self.directions))
        for V in self.directions.values():
            check_width(lm, self, V)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.weights import overwrite
        from ..directions import without

        for layer, V in self.directions.items():
            W, V = lm.W_out(layer), V.to(lm.device_of(layer))
            overwrite(W, without(W.float(), V, self.strength), stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {str(layer): V for layer, V in self.directions.items()}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> ProFS:
        return cls({layer: tensors[str(layer)] for layer in config["layers"]}, config["strength"])


def _differing(
    toxic: Float64[Tensor, "n_pairs d_model"], neutral: Float64[Tensor, "n_pairs d_model"], k: int
) -> tuple[Float[Tensor, "k d_model"], float]:
    """V_1 to V_k as rows, and which share of D's squares lies along them."""
    import torch

    from ..directions import without

    shared = torch.linalg.svd(toxic, full_matrices=False).Vh[:1]
    D = without(toxic - neutral, shared, 1.0)
    _, sizes, Vh = torch.linalg.svd(D, full_matrices=False)
    if sizes[k - 1] <= 1e-5 * toxic.norm():
        raise ToxlocError(
            f"The toxic and the neutral texts differ in fewer than k={k} directions; give other contrast "
            "text or a smaller k."
        )
    return Vh[:k].float(), float(sizes[:k].square().sum() / sizes.square().sum())
