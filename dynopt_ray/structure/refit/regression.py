"""Ridge regression, for G independent problems at once.

Each problem explains residuals r by inputs x, as r ≈ S x + c. The solution depends on the rows only
through their means and second moments:

    S = E[r xᵀ] (E[x xᵀ] + λ I)⁻¹,    c = E[r] - S E[x]

The moments are taken about the means if there is a constant c; otherwise c = 0. λ is given relative
to the mean of the diagonal of E[x xᵀ], so it does not depend on the scale of the inputs. It can be
chosen by fitting on some rows and judging on others (`best_ridges`). `moments` adds up rows, and
`masked_regression` solves problems with coefficients that a mask holds at zero.

Shapes: G groups (problems), R rows, K inputs, O outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dynopt_ray.errors import DataError
from dynopt_ray.transfers import read_numbers, to_device

RIDGE = 1e-2
"""The ridge at which a search starts, and the ridge to use if there are too few rows to search."""

_STEP = 10.0
_LEAST, _MOST = 1e-4, 1e3
# Number of steps from one of these to the other, and one beyond.
_MOST_STEPS = 8


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
    ridge_G = ridges_like(ridge, scale_G).expand_as(scale_G)
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
                raise not_finite()
        if solved is not None or not has_failed:
            return torch.cholesky_solve(cross_GOK.transpose(1, 2), factor).transpose(1, 2)
        # Rounding made the matrix indefinite, perhaps because some inputs hardly vary.
        ridge_G = torch.where(failed > 0, ridge_G * 10, ridge_G)
        floor_G = torch.where(failed > 0, floor_G * 10, floor_G)


def ridges_like(ridge: float | Tensor, like: Tensor) -> Tensor:
    """Return ridges as a tensor, of the type and on the device of another one."""
    if isinstance(ridge, Tensor):
        return to_device(ridge, like.device).to(like.dtype)
    return torch.full((), ridge, device=like.device).to(like.dtype)


def not_finite() -> DataError:
    """Return the error for moments that are not finite."""
    return DataError(
        "the moments of a regression are not finite: some inputs or outputs are NaN, infinite or "
        "too large to be squared"
    )
