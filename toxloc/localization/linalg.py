"""Linear algebra shared by editability and TRNE."""

import torch
from jaxtyping import Float
from torch import Tensor


def steepest(G: Float[Tensor, "d_mlp d_model"]) -> tuple[float, Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """Return the leading singular triple (σ₁, u₁, v₁) of G: <G, ΔW> rises most along the unit rank-one change u₁ v₁ᵀ.

    It is computed in float64 from the leading eigenvector of GᵀG, which is a small matrix.
    """
    G = G.double()
    v = torch.linalg.eigh(G.T @ G).eigenvectors[:, -1]
    Gv = G @ v
    sigma = Gv.norm()
    return float(sigma), Gv / sigma.clamp_min(torch.finfo(torch.float64).tiny), v


def steepest_at_cost(
    G: Float[Tensor, "d_mlp d_model"],
    C: Float[Tensor, "d_mlp d_mlp"],
    S: Float[Tensor, "d_model d_model"],
    ridge: float,
) -> tuple[float, Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """Return (σ₁, x, y): x yᵀ is the rank-one change of cost 1 along which <G, ΔW> rises most, and σ₁ is that rise.

    The cost of a change is tr(S̃ ΔWᵀ C̃ ΔW). If (σ₁, u₁, v₁) is the leading singular triple of C̃^(-1/2) G S̃^(-1/2), then
    x = C̃^(-1/2) u₁ and y = S̃^(-1/2) v₁. No matrix root is computed: y solves the small eigenproblem
    GᵀC̃⁻¹G y = σ₁² S̃ y, and x = C̃⁻¹ G y / σ₁, with Cholesky factors in float64.
    """
    G = G.double()
    K, L = factor(C, ridge), factor(S, ridge)
    whitened = torch.linalg.solve_triangular(K, G, upper=False)  # whitenedᵀ whitened = GᵀC̃⁻¹G
    both = torch.linalg.solve_triangular(L, whitened.T, upper=False)
    z = torch.linalg.eigh(both @ both.T).eigenvectors[:, -1]
    sigma = (both.T @ z).norm()
    y = torch.linalg.solve_triangular(L.T, z[:, None], upper=True)[:, 0]
    x = torch.cholesky_solve((G @ y)[:, None], K)[:, 0]
    return float(sigma), x / sigma.clamp_min(torch.finfo(torch.float64).tiny), y


def steepest_beyond_noise(
    halves: tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, "d_mlp d_model"]],
    C: Float[Tensor, "d_mlp d_mlp"],
    S: Float[Tensor, "d_model d_model"],
    ridge: float,
) -> tuple[float, Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """Return `steepest_at_cost` of the mean G of two gradients A and B of different texts, without their noise in σ₁.

    GᵀC̃⁻¹G contains the squared noise of both halves. The symmetric part of AᵀC̃⁻¹B has the same mean without that noise,
    because the noise of different texts is independent. y is the leading eigenvector of this matrix with respect to S̃,
    and σ₁² is its eigenvalue. σ₁ is 0 if the eigenvalue is not positive: the halves then share no direction.
    """
    A, B = (half.double() for half in halves)
    K, L = factor(C, ridge), factor(S, ridge)
    white = [
        torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(K, half, upper=False).T, upper=False)
        for half in (A, B)
    ]
    cross = white[0] @ white[1].T
    values, vectors = torch.linalg.eigh((cross + cross.T) / 2)
    sigma = float(values[-1].clamp_min(0).sqrt())
    y = torch.linalg.solve_triangular(L.T, vectors[:, -1:], upper=True)[:, 0]
    x = torch.cholesky_solve(((A + B) @ y)[:, None], K)[:, 0]  # the next line divides it by its length
    return sigma, x / torch.linalg.vector_norm(K.T @ x).clamp_min(torch.finfo(torch.float64).tiny), y


def factor(M: Float[Tensor, "d d"], ridge: float) -> Float[Tensor, "d d"]:
    """Return the Cholesky factor, in float64, of M + ridge * (mean eigenvalue of M) * I, M positive semi-definite."""
    M = M.to(torch.float64, copy=True)
    diagonal = M.diagonal()
    diagonal += ridge * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    L: Tensor = torch.linalg.cholesky(M)
    return L
