"""Ridge regression from sums over rows, for G independent problems at once.

Shapes: G groups, R rows, K inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2
"""Where the search for a ridge starts, and what too few rows to search on get."""

_STEP = 10.0
_LEAST, _MOST = 1e-4, 1e3
# Rows that are summed up in float32.
_MOST_RECENT = 1024
# Numbers in the systems that are solved at once: 128 MiB of them.
_MOST_NUMBERS = 2**24


@dataclass
class Moments:
    """Sums over rows of inputs x and of residuals r that they shall explain.

    They are taken about a point near the mean: differences of large sums would lose the
    variance of inputs whose mean is far from zero.

    Attributes:
        origin_GK: the point for x.
        count: number of rows.
        total_GK: sum of x - origin.
        residual_GO: sum of r.
        cross_GOK: sum of r (x - origin)ᵀ.
        settled_GKK: sum of (x - origin)(x - origin)ᵀ, without the rows in `recent_GKK`.
        recent_GKK: the same of the latest rows, in float32: it is the largest of the sums, and
            reading and writing it takes longer than the product of a small batch.
        num_recent: how many these are.
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
        """No rows yet; the origin is the mean of these."""
        groups, _, inputs = x_GRK.shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=x_GRK.device)

        return cls(
            origin_GK=x_GRK.float().mean(1),
            count=0,
            total_GK=zeros(inputs),
            residual_GO=zeros(num_outputs),
            cross_GOK=zeros(num_outputs, inputs),
            settled_GKK=zeros(inputs, inputs),
            recent_GKK=zeros(inputs, inputs).float(),
        )

    def add(self, x_GRK: Tensor, r_GRO: Tensor) -> None:
        """Add rows, in float32 within a few batches and in float64 over all."""
        x_GRK = x_GRK.float() - self.origin_GK[:, None]
        r_GRO = r_GRO.float()
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
        """Sum of (x - origin)(x - origin)ᵀ of all rows, (G, K, K), float64."""
        if self.num_recent:
            self._settle()
        return self.settled_GKK

    def plus(self, other: "Moments") -> "Moments":
        """Those of the rows of both, which have the same origin."""
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
        self, *, intercept: bool, ridge: float, kept_GOK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The regression of r on x.

        Args:
            intercept: whether r may have a constant part; it is zero otherwise.
            ridge: what coefficients cost, relative to the mean variance of the inputs.
            kept_GOK: bool tensor, False where a coefficient has to be zero; None if nowhere.

        Returns:
            Coefficients (G, O, K) and constants (G, O), float64.
        """
        cross, second = self.centred(intercept)
        if kept_GOK is None:
            slope = ridge_solve(cross, second, ridge=ridge)
        else:
            slope = masked_ridge_solve(cross, second, kept_GOK, ridge=ridge)
        mean_r = self.residual_GO / self.count
        if not intercept:
            return slope, torch.zeros_like(mean_r)
        return slope, mean_r - (slope @ self.mean[:, :, None])[..., 0]

    def loss(self, slope_GOK: Tensor, constant_GO: Tensor) -> float:
        """Mean squared error of a regression on these rows, less that of giving zero."""
        cross, second = self.centred(intercept=False)
        mean_r, mean_x = self.residual_GO / self.count, self.mean
        given = (slope_GOK @ second * slope_GOK).sum() - 2 * (slope_GOK * cross).sum()
        shift = (slope_GOK @ mean_x[:, :, None])[..., 0]
        constant = constant_GO * (constant_GO + 2 * shift - 2 * mean_r)
        return float(given + constant.sum())

    def centred(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """E r xᵀ and E x xᵀ, about the means where there is an intercept."""
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
        """Second moments of the inputs, (G, K, K), about the mean where there is an intercept."""
        return self.centred(intercept)[1]

    @property
    def mean(self) -> Tensor:
        """Of the inputs, (G, K), float64."""
        return self.origin_GK + self.total_GK / self.count

    @property
    def covariance(self) -> Tensor:
        """Of the inputs, (G, K, K), float64."""
        shift = self.total_GK / self.count
        return self.product_GKK / self.count - shift[:, :, None] * shift[:, None]


def best_ridges(loss: Callable[[Tensor], Tensor], num_problems: int) -> Tensor:
    """The ridges with which regressions on some rows do best on others.

    Searched from 0.01 on, for each problem by itself, by steps of 10 as long as they help.

    Args:
        loss: ridges (problems,) -> losses (problems,).
        num_problems: how many there are.
    """
    best = torch.full((num_problems,), RIDGE, dtype=torch.float64, device="cpu")
    least = loss(best)
    for step in (_STEP, 1 / _STEP):
        going = torch.ones_like(best, dtype=torch.bool)
        while True:
            tried = torch.where(going, best * step, best)
            found = loss(tried)
            going &= (found < least) & (tried > _LEAST / 2) & (tried < _MOST * 2)
            if not bool(going.any()):
                break
            best, least = torch.where(going, tried, best), torch.where(going, found, least)
    return best


def ridge_solve(
    cross_GOK: Tensor,
    second_GKK: Tensor,
    num_inputs_G: Tensor | None = None,
    *,
    ridge: float | Tensor = RIDGE,
) -> Tensor:
    """`cross (second + ridge)⁻¹`, the ridge in proportion to the mean variance of the inputs.

    Args:
        cross_GOK: second moments of outputs and inputs, float64.
        second_GKK: second moments of the inputs, float64.
        num_inputs_G: how many of the inputs of each problem are no padding with zeros; None
            where all are.
        ridge: relative to the mean variance of the inputs; one for all or one for each.

    Returns:
        Coefficients (G, O, K); zero at padding.
    """
    size = second_GKK.shape[1]
    trace_G = second_GKK.diagonal(dim1=1, dim2=2).sum(1)
    # Rounding may leave variances below zero.
    scale_G = trace_G.clamp(min=0) / (size if num_inputs_G is None else num_inputs_G)
    ridge_G = torch.as_tensor(ridge, device=scale_G.device).to(scale_G).expand_as(scale_G)
    floor_G = torch.full_like(scale_G, 1e-12)
    while True:
        shift = (ridge_G * scale_G + floor_G)[:, None].expand(-1, size)
        factor, failed = torch.linalg.cholesky_ex(second_GKK + torch.diag_embed(shift))
        if not failed.any():
            return torch.cholesky_solve(cross_GOK.transpose(1, 2), factor).transpose(1, 2)
        # Rounding made it indefinite, perhaps of inputs that hardly vary.
        ridge_G = torch.where(failed > 0, ridge_G * 10, ridge_G)
        floor_G = torch.where(failed > 0, floor_G * 10, floor_G)


def masked_ridge_solve(
    cross_GOK: Tensor, second_GKK: Tensor, kept_GOK: Tensor, *, ridge: float | Tensor = RIDGE
) -> Tensor:
    """`ridge_solve` with some coefficients held at zero: each output has inputs of its own.

    Args:
        cross_GOK: second moments of outputs and inputs, float64.
        second_GKK: second moments of the inputs, float64.
        kept_GOK: bool tensor, False where a coefficient has to be zero.
        ridge: relative to the mean variance of the inputs that an output keeps; one for all or
            one for each group.
    """
    ridge_G = torch.as_tensor(ridge, device=cross_GOK.device).expand(len(cross_GOK))
    slope_GOK = torch.zeros_like(cross_GOK)
    most = int(kept_GOK.sum(2).max())
    group, output = (index.flatten() for index in torch.where(kept_GOK.any(2)))
    num_at_once = max(1, _MOST_NUMBERS // max(1, most) ** 2)
    for rows in torch.split(torch.arange(len(group)), num_at_once):
        g, o = group[rows], output[rows]
        # The inputs that an output keeps come first; those after them are padding.
        kept_RK, index_RK = kept_GOK[g, o].sort(dim=1, descending=True, stable=True)
        kept_RK, index_RK = kept_RK[:, :most], index_RK[:, :most]
        second_RKK = second_GKK[g[:, None, None], index_RK[:, :, None], index_RK[:, None]]
        second_RKK = second_RKK * (kept_RK[:, :, None] & kept_RK[:, None])
        cross_RK = cross_GOK[g, o].gather(1, index_RK) * kept_RK
        solved = ridge_solve(cross_RK[:, None], second_RKK, kept_RK.sum(1), ridge=ridge_G[g])
        slope_GOK[g[:, None], o[:, None], index_RK] = solved[:, 0] * kept_RK
    return slope_GOK
