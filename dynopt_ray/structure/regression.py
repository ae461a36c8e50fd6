"""Ridge regression from sums over rows, for G independent problems at once.

Shapes: G groups, R rows, K inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-2


@dataclass
class Moments:
    """Sums over rows of inputs x and of residuals r that they shall explain.

    They are taken about a point near the mean: differences of large sums would lose the
    variance of inputs whose mean is far from zero.

    Attributes:
        origin_GK: the point for x.
        count: number of rows.
        total_GK: sum of x - origin.
        product_GKK: sum of (x - origin)(x - origin)ᵀ.
        residual_GO: sum of r.
        cross_GOK: sum of r (x - origin)ᵀ.
    """

    origin_GK: Tensor
    count: int
    total_GK: Tensor
    product_GKK: Tensor
    residual_GO: Tensor
    cross_GOK: Tensor

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
            product_GKK=zeros(inputs, inputs),
            residual_GO=zeros(num_outputs),
            cross_GOK=zeros(num_outputs, inputs),
        )

    def add(self, x_GRK: Tensor, r_GRO: Tensor) -> None:
        """Add rows, in float32 within a batch and in float64 over batches."""
        x_GRK = x_GRK.float() - self.origin_GK[:, None]
        r_GRO = r_GRO.float()
        self.count += x_GRK.shape[1]
        self.total_GK += x_GRK.sum(1)
        self.product_GKK += x_GRK.transpose(1, 2) @ x_GRK
        self.residual_GO += r_GRO.sum(1)
        self.cross_GOK += r_GRO.transpose(1, 2) @ x_GRK

    def fit(self, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """The regression of r on x.

        Args:
            intercept: whether r may have a constant part; it is zero otherwise.

        Returns:
            Coefficients (G, O, K) and constants (G, O), float64.
        """
        mean_x, mean_r = self.mean, self.residual_GO / self.count
        second, cross = self.covariance, self.cross_GOK / self.count
        shift = self.total_GK / self.count
        if intercept:
            cross = cross - mean_r[:, :, None] * shift[:, None]
        else:
            second = second + mean_x[:, :, None] * mean_x[:, None]
            cross = cross + mean_r[:, :, None] * self.origin_GK[:, None]
        slope = ridge_solve(cross, second)
        if not intercept:
            return slope, torch.zeros_like(mean_r)
        return slope, mean_r - (slope @ mean_x[:, :, None])[..., 0]

    @property
    def mean(self) -> Tensor:
        """Of the inputs, (G, K), float64."""
        return self.origin_GK + self.total_GK / self.count

    @property
    def covariance(self) -> Tensor:
        """Of the inputs, (G, K, K), float64."""
        shift = self.total_GK / self.count
        return self.product_GKK / self.count - shift[:, :, None] * shift[:, None]


def ridge_solve(
    cross_GOK: Tensor, second_GKK: Tensor, num_inputs_G: Tensor | None = None
) -> Tensor:
    """`cross (second + ridge)⁻¹`, the ridge in proportion to the mean variance of the inputs.

    Args:
        cross_GOK: second moments of outputs and inputs, float64.
        second_GKK: second moments of the inputs, float64.
        num_inputs_G: how many of the inputs of each problem are no padding with zeros; None
            where all are.

    Returns:
        Coefficients (G, O, K); zero at padding.
    """
    size = second_GKK.shape[1]
    trace_G = second_GKK.diagonal(dim1=1, dim2=2).sum(1)
    scale_G = trace_G / (size if num_inputs_G is None else num_inputs_G)
    ridge_G = torch.full_like(scale_G, _RIDGE)
    while True:
        shift = (ridge_G * scale_G + 1e-12)[:, None].expand(-1, size)
        factor, failed = torch.linalg.cholesky_ex(second_GKK + torch.diag_embed(shift))
        if not failed.any():
            return torch.cholesky_solve(cross_GOK.transpose(1, 2), factor).transpose(1, 2)
        # Rounding made it indefinite.
        ridge_G = torch.where(failed > 0, ridge_G * 10, ridge_G)
