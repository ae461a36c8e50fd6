"""Ridge regression from sums over rows, for G independent problems at once.

Each problem explains residuals r by inputs x, as r ≈ S x + c. The solution depends on the rows only
through their means and second moments:

    S = E[r xᵀ] (E[x xᵀ] + λ I)⁻¹,    c = E[r] - S E[x]

The moments are taken about the means if there is a constant c; otherwise c = 0. So rows can be
added batch by batch and need not be kept (`Moments`). The error of a solution on other rows follows
from their moments alone (`Moments.losses`), so λ can be chosen by fitting on some rows and judging
on others (`best_ridges`). λ is given relative to the mean of the diagonal of E[x xᵀ], so it does
not depend on the scale of the inputs. If a mask holds coefficients at zero, each output has a
problem of its own, on the inputs that it keeps (`masked_ridge_solve`).

Shapes: G groups (problems), R rows, K inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.transfers import read_numbers, read_together, to_device

RIDGE = 1e-2
"""The ridge at which a search starts, and the ridge to use if there are too few rows to search."""

_STEP = 10.0
_LEAST, _MOST = 1e-4, 1e3
# Number of steps from one of these to the other, and one beyond.
_MOST_STEPS = 8
# Number of rows that are summed in float32 before the sum is added in float64.
_MOST_RECENT = 1024
# Number of steps of conjugate gradients for masked problems. More hardly change the error on other
# rows.
_NUM_DESCENTS = 8
# Largest number of coefficients that are found at one time; each step keeps two numbers for each.
_MOST_NUMBERS = 2**21
# Divisors are at least this, for problems that are solved already.
_TINY = 1e-300


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


def best_ridges(
    loss: Callable[[Tensor], Tensor],
    num_problems: int,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Return the ridges with which regressions that are fitted on some rows do best on others.

    The search is separate for each problem. It starts at 0.01 and multiplies or divides by 10 as
    long as the loss decreases, between 1e-4 and 1e3.

    Args:
        loss: function of ridges (problems,) that returns losses (problems,) on the other rows.
        num_problems: number of problems.
        device: where the ridges and losses are, by default on the CPU. On a GPU, the search takes
            all steps, because the host would have to wait to find out that it can end earlier.
    """
    place = torch.device("cpu") if device is None else device
    best = torch.full((num_problems,), RIDGE, dtype=torch.float64, device=place)
    least = loss(best)
    for step in (_STEP, 1 / _STEP):
        going = torch.ones_like(best, dtype=torch.bool)
        for _ in range(_MOST_STEPS):
            tried = torch.where(going, best * step, best)
            found = loss(tried)
            going &= (found < least) & (tried > _LEAST / 2) & (tried < _MOST * 2)
            if place.type == "cpu" and not bool(going.any()):
                break
            best, least = torch.where(going, tried, best), torch.where(going, found, least)
    return best


def ridge_solve(
    cross_GOK: Tensor,
    second_GKK: Tensor,
    num_inputs_G: Tensor | None = None,
    *,
    ridge: float | Tensor = RIDGE,
    solved: list[Tensor] | None = None,
) -> Tensor:
    """Return `cross (second + λ I)⁻¹`, with λ = `ridge` times the mean variance of the inputs.

    Args:
        cross_GOK: second moments of outputs and inputs, float64.
        second_GKK: second moments of the inputs, float64.
        num_inputs_G: number of inputs of each problem that are not padding with zeros; None if
            there is no padding.
        ridge: relative to the mean variance of the inputs; one for all problems or one for each.
        solved: if given, nothing is read, so that the host does not wait for a GPU: it gets a bool
            tensor, whether the result is right. If it is not, call again without `solved`, which
            raises the ridge until the problems can be solved.

    Returns:
        Coefficients (G, O, K); zero at padding.

    Raises:
        DataError: a moment is not finite.
    """
    finite = cross_GOK.isfinite().all() & second_GKK.isfinite().all()
    size = second_GKK.shape[1]
    trace_G = second_GKK.diagonal(dim1=1, dim2=2).sum(1)
    # Rounding may make variances negative.
    scale_G = trace_G.clamp(min=0) / (size if num_inputs_G is None else num_inputs_G)
    ridge_G = _ridges(ridge, scale_G).expand_as(scale_G)
    floor_G = torch.full_like(scale_G, 1e-12)
    while True:
        shift = (ridge_G * scale_G + floor_G)[:, None].expand(-1, size)
        finite = finite & shift.isfinite().all()
        factor, failed = torch.linalg.cholesky_ex(second_GKK + torch.diag_embed(shift))
        all_failed = failed.any()
        if solved is not None:
            solved.append(finite & ~all_failed)
        else:
            is_finite, has_failed = read_numbers([finite, all_failed])
            if not is_finite:
                raise _not_finite()
        if solved is not None or not has_failed:
            return torch.cholesky_solve(cross_GOK.transpose(1, 2), factor).transpose(1, 2)
        # Rounding made the matrix indefinite, perhaps because some inputs hardly vary.
        ridge_G = torch.where(failed > 0, ridge_G * 10, ridge_G)
        floor_G = torch.where(failed > 0, floor_G * 10, floor_G)


def _ridges(ridge: float | Tensor, like: Tensor) -> Tensor:
    """Return ridges as a tensor, of the type and on the device of another one."""
    if isinstance(ridge, Tensor):
        return to_device(ridge, like.device).to(like.dtype)
    return torch.full((), ridge, device=like.device).to(like.dtype)


def _not_finite() -> DataError:
    return DataError(
        "the moments of a regression are not finite: some inputs or outputs are NaN, infinite or "
        "too large to be squared"
    )


def masked_ridge_solve(
    cross_GOK: Tensor,
    second_GKK: Tensor,
    kept_GOK: Tensor,
    *,
    ridge: float | Tensor = RIDGE,
    solved: list[Tensor] | None = None,
) -> Tensor:
    """Solve like `ridge_solve`, with some coefficients held at zero.

    If all outputs of a problem keep the same inputs, it is solved exactly. Otherwise each output
    is a problem of its own, and the result is what 8 steps of conjugate gradients from zero reach:
    exact for up to 8 inputs, and as good on other rows for more, because stopping early is a
    ridge, too. Solving each of them exactly would take time cubic in the number of inputs.

    Args:
        cross_GOK: second moments of outputs and inputs, float64.
        second_GKK: second moments of the inputs, float64.
        kept_GOK: bool tensor, False if a coefficient has to be zero.
        ridge: relative to the mean variance of the inputs that an output keeps; one for all or
            one for each group.
        solved: see `ridge_solve`.

    Raises:
        DataError: a moment is not finite.

    References:
        Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems",
        here preconditioned by the diagonal, with residuals that are made orthogonal to all before.
    """
    alike_G = keep_alike(kept_GOK)
    ridge_G = _ridges(ridge, cross_GOK).expand(len(cross_GOK))
    if solved is not None and cross_GOK.device.type != "cpu":
        # Problems of one kind are also solved as if they were of the other, and not read.
        kept_GK = kept_GOK[:, 0] & alike_G[:, None]
        exact_GOK = _solve_alike(cross_GOK, second_GKK, kept_GK, ridge_G, solved)
        descended_GOK = _descend(cross_GOK, second_GKK, kept_GOK, ridge_G, solved)
        return torch.where(alike_G[:, None, None], exact_GOK, descended_GOK)
    (alike_G,) = read_together([alike_G])
    result_GOK = torch.empty_like(cross_GOK)
    for chosen in (alike_G, ~alike_G):
        at = to_device(chosen.nonzero()[:, 0], cross_GOK.device)
        if len(at):
            cross, second, kept = cross_GOK[at], second_GKK[at], kept_GOK[at]
            if chosen is alike_G:
                found = _solve_alike(cross, second, kept[:, 0], ridge_G[at], solved)
            else:
                found = _descend(cross, second, kept, ridge_G[at], solved)
            result_GOK[at] = found
    return result_GOK


def keep_alike(kept_GOK: Tensor) -> Tensor:
    """Return for which problems all outputs keep the same inputs, bool (G,).

    Only for these a search for the ridge pays: others stop early, whatever the ridge.
    """
    return (kept_GOK == kept_GOK[:, :1]).flatten(1).all(1)


def _solve_alike(
    cross_GOK: Tensor,
    second_GKK: Tensor,
    kept_GK: Tensor,
    ridge: Tensor,
    solved: list[Tensor] | None,
) -> Tensor:
    """Solve problems of which all outputs keep the same inputs, as if the others were padding."""
    slope_GOK = ridge_solve(
        cross_GOK * kept_GK[:, None],
        second_GKK * (kept_GK[:, :, None] & kept_GK[:, None]),
        kept_GK.sum(1).clamp(min=1),
        ridge=ridge,
        solved=solved,
    )
    return slope_GOK * kept_GK[:, None]


def _descend(
    cross_GOK: Tensor,
    second_GKK: Tensor,
    kept_GOK: Tensor,
    ridge_G: Tensor,
    solved: list[Tensor] | None,
) -> Tensor:
    """Take steps of conjugate gradients for each output."""
    finite = cross_GOK.isfinite().all() & second_GKK.isfinite().all()
    if solved is not None:
        solved.append(finite)
    elif not any(read_numbers([finite])):
        raise _not_finite()
    own_GOK = second_GKK.diagonal(dim1=1, dim2=2)[:, None].clamp(min=0) * kept_GOK
    mean_GO1 = own_GOK.sum(2, keepdim=True) / kept_GOK.sum(2, keepdim=True).clamp(min=1)
    shift_GO1 = ridge_G[:, None, None] * mean_GO1 + 1e-12
    scale_GOK = own_GOK + shift_GO1
    most = max(1, _MOST_NUMBERS // max(1, second_GKK.shape[1] * len(second_GKK)))
    of_outputs = (cross_GOK, kept_GOK, scale_GOK, shift_GO1)
    parts = (torch.split(values, most, 1) for values in of_outputs)
    return torch.cat([_steps(second_GKK, *part) for part in zip(*parts, strict=True)], 1)


def _steps(
    second_GKK: Tensor, cross_GOK: Tensor, kept_GOK: Tensor, scale_GOK: Tensor, shift_GO1: Tensor
) -> Tensor:
    """Return what the steps reach from zero, for some of the outputs."""
    slope_GOK = torch.zeros_like(cross_GOK)
    left_GOK = cross_GOK * kept_GOK
    scaled_GOK = towards_GOK = left_GOK / scale_GOK
    size_GO1 = (left_GOK * scaled_GOK).sum(2, keepdim=True)
    past: list[tuple[Tensor, Tensor]] = []
    for _ in range(_NUM_DESCENTS):
        past.append((left_GOK / size_GO1.clamp(min=_TINY), scaled_GOK))
        product_GOK = (towards_GOK @ second_GKK + shift_GO1 * towards_GOK) * kept_GOK
        curvature_GO1 = (towards_GOK * product_GOK).sum(2, keepdim=True)
        length_GO1 = size_GO1 / curvature_GO1.clamp(min=_TINY)
        slope_GOK += length_GO1 * towards_GOK
        left_GOK = left_GOK - length_GO1 * product_GOK
        # Residuals are orthogonal but for rounding errors, which grow by each step if they stay.
        for before_GOK, along_GOK in past:
            left_GOK -= before_GOK * (along_GOK * left_GOK).sum(2, keepdim=True)
        scaled_GOK = left_GOK / scale_GOK
        before_GO1, size_GO1 = size_GO1, (left_GOK * scaled_GOK).sum(2, keepdim=True)
        towards_GOK = scaled_GOK + size_GO1 / before_GO1.clamp(min=_TINY) * towards_GOK
    return slope_GOK
