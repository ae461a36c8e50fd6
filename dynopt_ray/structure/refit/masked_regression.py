"""Ridge regression with some coefficients held at zero, for G independent problems at once.

Shapes: G groups (problems), K inputs, O outputs.
"""

import torch
from torch import Tensor

from dynopt_ray.structure.refit.regression import RIDGE, not_finite, ridge_solve, ridges_like
from dynopt_ray.transfers import read_numbers, read_together, to_device

# Number of steps of conjugate gradients for masked problems. More hardly change the error on other
# rows.
_NUM_DESCENTS = 8
# Largest number of coefficients that are found at one time; each step keeps two numbers for each.
_MOST_NUMBERS = 2**21
# Divisors are at least this, for problems that are solved already.
_TINY = 1e-300


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
    ridge_G = ridges_like(ridge, cross_GOK).expand(len(cross_GOK))
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
        raise not_finite()
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
