"""Running mean and variance."""

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Running mean and variance of each column of a stream of rows; 0 without rows.

    Each update sums the deviations from the mean of the first rows in float32, so that a large mean costs no precision,
    and adds the sums up in float64.
    """

    def __init__(self, d: int) -> None:
        self.count = 0
        self._centre: Tensor = torch.zeros(d)
        self._sum: Tensor = torch.zeros(d, dtype=torch.float64)
        self._squares: Tensor = torch.zeros(d, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "n d"], weights: Float[Tensor, " n"], count: int) -> None:
        """Add the rows of weight 1; all other rows have weight 0. `count` is the sum of the weights."""
        if count == 0:
            return
        rows = rows.float()
        if self.count == 0:
            self._centre = weights @ rows / count
        deviations = rows - self._centre
        self._sum = self._sum + (weights @ deviations).double().cpu()
        self._squares = self._squares + (weights @ deviations.mul_(deviations)).double().cpu()
        self.count += count

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of each column."""
        return self._centre.double().cpu() + self._sum / max(1, self.count)

    @property
    def squares(self) -> Float[Tensor, " d"]:
        """Sum of the squared deviations from the mean of each column."""
        return (self._squares - self._sum**2 / max(1, self.count)).clamp_min(0)

    @property
    def var(self) -> Float[Tensor, " d"]:
        """Variance of each column: the sum of squared deviations divided by the count."""
        return self.squares / max(1, self.count)
