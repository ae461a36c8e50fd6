"""Sums over rows, from which regressions follow, so that rows need not be kept.

Rows can be added batch by batch. The error of a solution on other rows follows from their moments
alone (`Moments.losses`).

Shapes: G groups (problems), R rows, K inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.structure.refit.masked_regression import masked_ridge_solve
from dynopt_ray.structure.refit.regression import ridge_solve

# Number of rows that are summed in float32 before the sum is added in float64.
_MOST_RECENT = 1024


@dataclass
class Moments:
    """Sums over rows of inputs x and of the residuals r that they have to explain.

    Inputs are taken relative to an origin near their mean. Otherwise the variance of inputs whose
    mean is far from zero would be lost in the difference of large sums.

    Attributes:
        origin_GK: the origin of x.
        count: number of rows.
        total_GK: sum of x - origin.
        residual_GO: sum of r.
        cross_GOK: sum of r (x - origin)ᵀ.
        settled_GKK: sum of (x - origin)(x - origin)ᵀ, without the rows in `recent_GKK`.
        recent_GKK: the same sum over the latest rows, in the inputs' floating type, at least
            float32. It is the largest of the sums, so in float64 reading and writing it would take
            longer than the product of a small batch.
        num_recent: number of rows in `recent_GKK`.
    """

    origin_GK: Tensor
    count: int
    total_GK: Tensor
    residual_GO: Tensor
    cross_GOK: Tensor
    settled_GKK: Tensor
    recent_GKK: Tensor
    num_recent: int = 0

    @classmethod
    def start(cls, x_GRK: Tensor, num_outputs: int) -> "Moments":
        """Return moments of no rows; their origin is the mean of these rows."""
        groups, _, inputs = x_GRK.shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=x_GRK.device)

        return cls(
            origin_GK=_exact(x_GRK).mean(1),
            count=0,
            total_GK=zeros(inputs),
            residual_GO=zeros(num_outputs),
            cross_GOK=zeros(num_outputs, inputs),
            settled_GKK=zeros(inputs, inputs),
            recent_GKK=zeros(inputs, inputs).to(_exact(x_GRK[:0]).dtype),
        )

    def add(self, x_GRK: Tensor, r_GRO: Tensor) -> None:
        """Add rows. Sums are in float32 within a few batches and in float64 over all batches."""
        x_GRK = _exact(x_GRK) - self.origin_GK[:, None]
        r_GRO = _exact(r_GRO)
        self.count += x_GRK.shape[1]
        self.total_GK += x_GRK.sum(1)
        self.recent_GKK.baddbmm_(x_GRK.transpose(1, 2), x_GRK)
        self.num_recent += x_GRK.shape[1]
        if self.num_recent >= _MOST_RECENT:
            self._settle()
        self.residual_GO += r_GRO.sum(1)
        self.cross_GOK += r_GRO.transpose(1, 2) @ x_GRK

    def _settle(self) -> None:
        self.settled_GKK += self.recent_GKK
        self.recent_GKK.zero_()
        self.num_recent = 0

    @property
    def product_GKK(self) -> Tensor:
        """Sum of (x - origin)(x - origin)ᵀ over all rows, (G, K, K), float64."""
        if self.num_recent:
            self._settle()
        return self.settled_GKK

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both, which must have the same origin."""
        return Moments(
            self.origin_GK,
            self.count + other.count,
            self.total_GK + other.total_GK,
            self.residual_GO + other.residual_GO,
            self.cross_GOK + other.cross_GOK,
            self.product_GKK + other.product_GKK,
            torch.zeros_like(self.recent_GKK),
        )

    def fit(
        self,
        *,
        intercept: bool,
        ridge: float,
        kept_GOK: Tensor | None = None,
        solved: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fit the regression of r on x.

        Args:
            intercept: whether to fit a constant; otherwise it is zero.
            ridge: the penalty on coefficients, relative to the mean variance of the inputs.
            kept_GOK: bool tensor, False if a coefficient has to be zero; None if none has to.
            solved: see `ridge_solve`.

        Returns:
            Coefficients (G, O, K) and constants (G, O), float64.
        """
        cross, second = self.centred(intercept)
        if kept_GOK is None:
            slope = ridge_solve(cross, second, ridge=ridge, solved=solved)
        else:
            slope = masked_ridge_solve(cross, second, kept_GOK, ridge=ridge, solved=solved)
        mean_r = self.residual_GO / self.count
        if not intercept:
            return slope, torch.zeros_like(mean_r)
        return slope, mean_r - (slope @ self.mean[:, :, None])[..., 0]

    def losses(self, slope_GOK: Tensor, constant_GO: Tensor) -> Tensor:
        """Return the mean squared error of each fit on these rows, minus that of predicting zero.

        They are (G,), on the device of the rows.
        """
        cross, second = self.centred(intercept=False)
        mean_r, mean_x = self.residual_GO / self.count, self.mean
        given = (slope_GOK @ second * slope_GOK).sum((1, 2)) - 2 * (slope_GOK * cross).sum((1, 2))
        shift = (slope_GOK @ mean_x[:, :, None])[..., 0]
        constant = constant_GO * (constant_GO + 2 * shift - 2 * mean_r)
        return given + constant.sum(1)

    def centred(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """Return E[r xᵀ] and E[x xᵀ], about the means if there is an intercept."""
        mean_x, mean_r = self.mean, self.residual_GO / self.count
        second, cross = self.covariance, self.cross_GOK / self.count
        if intercept:
            shift = self.total_GK / self.count
            return cross - mean_r[:, :, None] * shift[:, None], second
        return (
            cross + mean_r[:, :, None] * self.origin_GK[:, None],
            second + mean_x[:, :, None] * mean_x[:, None],
        )

    def second(self, *, intercept: bool) -> Tensor:
        """Return the inputs' second moments (G, K, K), about the mean if there is an intercept."""
        return self.centred(intercept)[1]

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, (G, K), float64."""
        return self.origin_GK + self.total_GK / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of the inputs, (G, K, K), float64."""
        shift = self.total_GK / self.count
        return self.product_GKK / self.count - shift[:, :, None] * shift[:, None]


def _exact(values: Tensor) -> Tensor:
    """Return values in their own floating type, or in float32 if that is more exact."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
