import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tests.conftest import TEXTS
from toxloc import ContrastSet, Steering, ToxlocError
from toxloc.interventions.directions import (
    check_strength,
    check_unit,
    check_width,
    mean_difference,
    probe,
    residual_sides,
    without,
)

from .methods.test_steering import means


def test_without_takes_a_share_of_the_part_along_the_rows():
    rng = np.random.default_rng(0)
    V, x = np.linalg.qr(rng.normal(size=(6, 2)))[0].T, rng.normal(size=(3, 6))
    for strength in (0.25, 1.0):
        np.testing.assert_allclose(
            without(torch.tensor(x), torch.tensor(V), strength), x @ (np.eye(6) - strength * V.T @ V)
        )
    np.testing.assert_allclose(without(torch.tensor(x), torch.tensor(V), 1.0) @ V.T, np.zeros((3, 2)), atol=1e-12)


def test_residual_sides_are_means_over_all_tokens_but_the_first(tiny):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:])
    for layer, (toxic, neutral) in zip((1, 0), residual_sides(tiny, pairs, [1, 0]), strict=True):
        np.testing.assert_allclose(toxic, means(tiny, pairs.toxic, layer), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(neutral, means(tiny, pairs.neutral, layer), rtol=1e-4, atol=1e-5)


def test_the_mean_difference_points_from_neutral_to_toxic():
    toxic, neutral = torch.tensor([[3.0, 1.0], [5.0, 1.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    assert mean_difference(toxic, neutral).tolist() == [3.0, -1.0]
    with pytest.raises(ToxlocError, match="the same mean"):
        mean_difference(toxic, toxic)


def test_the_probe_is_the_minimum_of_the_penalised_loss_by_another_optimiser():
    rng = np.random.default_rng(1)
    toxic, neutral = rng.normal((1, 0, -0.5, 0), size=(7, 4)), rng.normal(size=(9, 4))
    X = np.concatenate([toxic, neutral])
    X = X - X.mean(0)
    X = X / np.sqrt((X**2).mean())
    sign = np.repeat([1, -1], [7, 9])

    def loss(w):
        return np.logaddexp(0, -sign * (X @ w[:-1] + w[-1])).sum() + w[:-1] @ w[:-1] / 2

    w = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x[:-1]
    np.testing.assert_allclose(probe(torch.tensor(toxic), torch.tensor(neutral)), w / np.linalg.norm(w), atol=1e-4)


@pytest.mark.parametrize("strength", [0, -1, 1.5, float("nan")])
def test_strengths_of_a_projection_out_of_range(strength):
    with pytest.raises(ToxlocError, match=f"not {strength}"):
        check_strength(strength)
    check_strength(1)


def test_lengths_and_widths(tiny):
    check_unit(torch.eye(16)[0])
    with pytest.raises(ToxlocError, match="length 1, not 2; divide"):
        check_unit(2 * torch.eye(16)[0])
    with pytest.raises(ToxlocError, match="is for d_model=8; random-gpt2 has d_model=16"):
        check_width(tiny, Steering(torch.ones(8), 0, 1.0), torch.ones(8))
    check_width(tiny, None, torch.ones(3, 16))
