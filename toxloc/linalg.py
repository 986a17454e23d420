"""The two pieces of linear algebra that editability and TRNE share."""

import torch
from jaxtyping import Float
from torch import Tensor


def steepest(G: Float[Tensor, "d_mlp d_model"]) -> tuple[float, Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """Leading singular triple (σ₁, u₁, v₁) of G: the unit rank-one change u₁ v₁ᵀ along which <G, ΔW> rises most.

    From the leading eigenvector of GᵀG in float64, which is a small matrix.
    """
    G = G.double()
    v = torch.linalg.eigh(G.T @ G).eigenvectors[:, -1]
    Gv = G @ v
    sigma = Gv.norm()
    return float(sigma), Gv / sigma.clamp_min(torch.finfo(torch.float64).tiny), v


def inverse_root(M: Float[Tensor, "d d"], ridge: float) -> Float[Tensor, "d d"]:
    """(M + ridge * mean eigenvalue of M * I)^(-1/2), for symmetric M with no negative eigenvalue, in float64."""
    values, vectors = torch.linalg.eigh(M.double())
    values = values.clamp_min(0)
    root: Tensor = (vectors * (values + ridge * values.mean()).rsqrt()) @ vectors.T
    return root
