"""The steepest rank-one change per cost, against an eigendecomposition of the whole matrices in numpy."""

import numpy as np
import pytest
import torch

from toxloc.localization.linalg import factor, steepest_at_cost, steepest_beyond_noise


def matrices(seed, d=6, m=4):
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(d, d)), rng.normal(size=(m, m))
    return rng.normal(size=(d, m)), A @ A.T / d, B @ B.T / m


def with_ridge(M, ridge):
    return M + ridge * np.trace(M) / len(M) * np.eye(len(M))


def inverse_root(M):
    values, vectors = np.linalg.eigh(M)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_cholesky_factor_is_that_of_the_matrix_with_its_ridge(ridge):
    _, C, _ = matrices(0)
    K = factor(torch.tensor(C), ridge).numpy()
    np.testing.assert_allclose(K @ K.T, with_ridge(C, ridge), atol=1e-12)
    np.testing.assert_array_equal(K, np.tril(K))


@pytest.mark.parametrize("seed", [1, 2])
def test_steepest_is_the_leading_singular_triple_of_the_whitened_gradient(seed):
    G, C, S = matrices(seed)
    P, Q = inverse_root(with_ridge(C, 0.1)), inverse_root(with_ridge(S, 0.1))
    U, values, V = np.linalg.svd(P @ G @ Q)
    sigma, x, y = steepest_at_cost(*tensors(G, C, S), 0.1)
    assert sigma == pytest.approx(values[0], rel=1e-9)
    np.testing.assert_allclose(np.outer(x, y), np.outer(P @ U[:, 0], Q @ V[0]), atol=1e-9)


@pytest.mark.parametrize("seed", [3, 4])
def test_equal_halves_have_no_noise_and_give_the_same(seed):
    G, C, S = matrices(seed)
    sigma, x, y = steepest_at_cost(*tensors(G, C, S), 0.1)
    sigma_halves, x_halves, y_halves = steepest_beyond_noise(tuple(tensors(G, G)), *tensors(C, S), 0.1)
    assert sigma_halves == pytest.approx(sigma, rel=1e-9)
    np.testing.assert_allclose(np.outer(x_halves, y_halves), np.outer(x, y), atol=1e-9)


def test_opposite_halves_share_nothing():
    G, C, S = matrices(5)
    assert steepest_beyond_noise(tuple(tensors(G, -G)), *tensors(C, S), 0.1)[0] == 0


def test_the_value_of_different_halves_is_the_root_of_the_leading_eigenvalue_of_their_symmetric_part():
    (A, C, S), (B, _, _) = matrices(6), matrices(7)
    B = A + 0.2 * B
    Q = inverse_root(with_ridge(S, 0.1))
    cross = Q @ A.T @ np.linalg.inv(with_ridge(C, 0.1)) @ B @ Q
    expected = np.sqrt(np.linalg.eigvalsh((cross + cross.T) / 2)[-1])
    assert steepest_beyond_noise(tuple(tensors(A, B)), *tensors(C, S), 0.1)[0] == pytest.approx(expected, rel=1e-9)
