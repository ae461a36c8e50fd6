"""Ridge regression from sums, against sums over all rows and closed forms."""

import itertools

import pytest
import torch
from torch import Tensor

from dynopt_ray.structure.plans.resizing import resized
from dynopt_ray.structure.refit.masked_regression import masked_ridge_solve
from dynopt_ray.structure.refit.moments import Moments
from dynopt_ray.structure.refit.regression import RIDGE, best_ridges, ridge_solve
from dynopt_ray.structure.units import Axis

GENERATOR = torch.Generator().manual_seed(0)
# Two groups, 300 rows, four inputs far from zero, three outputs.
X = torch.randn(2, 300, 4, generator=GENERATOR) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + 7.0
R = X[:, :, :3] * 0.5 + torch.randn(2, 300, 3, generator=GENERATOR) - 2.0


def summed(*sizes: int, start: int = 0) -> Moments:
    """Moments of rows that come in batches of these sizes."""
    moments = Moments.start(X[:, :10], num_outputs=3)
    for size in sizes:
        rows = slice(start, start + size)
        moments.add(X[:, rows], R[:, rows])
        start += size
    return moments


def direct(num_rows: int, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E r xᵀ and E x xᵀ about the means (or about zero), and the means."""
    x, r = X[:, :num_rows].double(), R[:, :num_rows].double()
    mean_x, mean_r = x.mean(1), r.mean(1)
    if intercept:
        x, r = x - mean_x[:, None], r - mean_r[:, None]
    cross = torch.einsum("gro,grk->gok", r, x) / num_rows
    return cross, torch.einsum("grj,grk->gjk", x, x) / num_rows, mean_x, mean_r


@pytest.mark.parametrize("most_recent", [1, 100, 10_000])
@pytest.mark.parametrize("intercept", [True, False])
def test_moments_are_those_of_all_rows(
    most_recent: int, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynopt_ray.structure.refit.moments._MOST_RECENT", most_recent)
    cross, second, mean_x, _ = direct(300, intercept)
    for moments in (summed(300), summed(*[50] * 6), summed(100).plus(summed(90, 110, start=100))):
        assert moments.count == 300
        torch.testing.assert_close(moments.mean, mean_x, rtol=1e-5, atol=1e-5)
        found_cross, found_second = moments.centred(intercept)
        torch.testing.assert_close(found_second, second, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found_cross, cross, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.second(intercept=intercept), found_second)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_fit_is_ridge_regression(intercept: bool, masked: bool) -> None:
    ridge = 0.3
    kept = torch.ones(2, 3, 4, dtype=torch.bool)
    if masked:
        kept[0, 0, 1] = kept[0, 2, 0] = kept[0, 2, 3] = kept[1, 1, 2] = False
    slope, constant = summed(300).fit(
        intercept=intercept, ridge=ridge, kept_GOK=kept if masked else None
    )
    cross, second, mean_x, mean_r = direct(300, intercept)
    for group in range(2):
        for output in range(3):
            inputs = kept[group, output]
            own = second[group][inputs][:, inputs]
            # The ridge is relative to the mean moment of the inputs that the output has.
            shift = ridge * own.diagonal().mean() * torch.eye(len(own))
            wanted = torch.linalg.solve(own + shift, cross[group, output, inputs])
            found = slope[group, output]
            torch.testing.assert_close(found[inputs], wanted, rtol=1e-4, atol=1e-5)
            assert not bool(found[~inputs].any())
            rest = mean_r[group, output] - found @ mean_x[group] if intercept else 0.0
            assert float(constant[group, output]) == pytest.approx(float(rest), abs=1e-3)


def test_the_loss_of_a_fit_is_its_mean_squared_error() -> None:
    slope, constant = summed(200).fit(intercept=True, ridge=0.1)
    rest = summed(100, start=200)
    x, r = X[:, 200:].double(), R[:, 200:].double()
    given = torch.einsum("gok,grk->gro", slope, x) + constant[:, None]
    wanted = ((r - given).square() - r.square()).mean(1).sum(1)
    torch.testing.assert_close(rest.losses(slope, constant), wanted, rtol=1e-4, atol=0)


def masked_solution(cross: Tensor, second: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Solve output by output, on the inputs that it keeps."""
    found = torch.zeros_like(cross)
    for group, output in itertools.product(*map(range, cross.shape[:2])):
        inputs = kept[group, output]
        if inputs.any():
            own = second[group][inputs][:, inputs]
            own = own + ridge * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
            found[group, output, inputs] = torch.linalg.solve(own, cross[group, output, inputs])
    return found


def test_masked_problems_are_solved_side_by_side() -> None:
    cross, second, _, _ = direct(300, True)
    kept = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3)) > 0.3
    kept[1, 2] = False  # an output without inputs
    found = masked_ridge_solve(cross, second, kept, ridge=0.2)
    torch.testing.assert_close(found, masked_solution(cross, second, kept, 0.2))
    assert not bool(found[~kept].any())
    # A problem of which all outputs keep the same inputs is solved exactly, in any company.
    kept[0] = kept[0, :1]
    together = masked_ridge_solve(cross, second, kept, ridge=torch.tensor([0.1, 0.5]))
    for group, ridge in enumerate((0.1, 0.5)):
        one = slice(group, group + 1)
        alone = masked_ridge_solve(cross[one], second[one], kept[one], ridge=ridge)
        torch.testing.assert_close(together[one], alone)


def test_many_masked_inputs_are_nearly_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(2000, 100, generator=generator) @ torch.randn(100, 100, generator=generator)
    rows = (mixed + torch.randn(2000, 100, generator=generator)).relu().double()
    wanted = rows @ torch.randn(100, 20, generator=generator).double() / 10
    kept = torch.rand(1, 20, 100, generator=generator) < 0.3

    def moments(at: slice) -> tuple[Tensor, Tensor]:
        x, y = rows[at], wanted[at]
        return (y.T @ x / len(x))[None], (x.T @ x / len(x))[None]

    def error(slope: Tensor) -> float:
        lack = wanted[1000:] - rows[1000:] @ slope[0].T
        return float(lack.square().mean())

    near = masked_ridge_solve(*moments(slice(1000)), kept)
    exact = masked_solution(*moments(slice(1000)), kept, RIDGE)
    assert error(near) < 1.01 * error(exact)
    assert error(exact) < 0.5 * error(torch.zeros_like(exact))


def test_padding_with_zeros_counts_for_nothing() -> None:
    cross, second, _, _ = direct(300, True)
    wide_cross = torch.nn.functional.pad(cross, (0, 2))
    wide = torch.nn.functional.pad(second, (0, 2, 0, 2))
    found = ridge_solve(wide_cross, wide, torch.tensor([4, 4]), ridge=0.2)
    torch.testing.assert_close(found[:, :, :4], ridge_solve(cross, second, ridge=0.2))
    assert not bool(found[:, :, 4:].any())


def test_inputs_that_are_multiples_of_each_other_share_the_work() -> None:
    second = torch.ones(1, 2, 2, dtype=torch.float64)
    found = ridge_solve(torch.ones(1, 1, 2, dtype=torch.float64), second, ridge=0.0)
    assert found.flatten().tolist() == pytest.approx([0.5, 0.5], rel=1e-3)


@pytest.mark.parametrize(
    ("best", "found"),
    [
        (0.01, 0.01),
        (0.03, 0.01),  # nearer to 0.01 than to 0.1 by the logarithm
        (0.3, 0.1),
        (12.0, 10.0),
        (1e-3, 1e-3),
        (1e-9, 1e-4),  # the least that is tried
        (1e9, 1e3),  # the most
    ],
)
def test_the_best_ridge_is_searched_by_steps_of_ten(best: float, found: float) -> None:
    def loss(ridges: Tensor) -> Tensor:
        return (ridges.log10() - torch.tensor(best).log10()).abs()

    assert best_ridges(loss, 1).tolist() == pytest.approx([found])


def test_each_problem_has_a_best_ridge_of_its_own() -> None:
    wanted = torch.tensor([1e-3, 1e-2, 10.0, 1e3], dtype=torch.float64)

    def loss(ridges: Tensor) -> Tensor:
        return (ridges.log10() - wanted.log10()).square()

    torch.testing.assert_close(best_ridges(loss, 4), wanted)
    assert best_ridges(lambda ridges: torch.zeros_like(ridges), 2).tolist() == [RIDGE, RIDGE]


def test_a_large_tensor_is_cut_in_parts() -> None:
    """As a small one is at once: 800 × 700 numbers are more than a megabyte."""
    large = torch.arange(800 * 700, dtype=torch.float32).reshape(800, 700)
    rows = torch.randperm(800, generator=torch.Generator().manual_seed(0))[:613]
    columns = torch.arange(0, 700, 3)
    none = torch.zeros(0, dtype=torch.long)
    axes = {dim: _kept(index, none) for dim, index in ((0, rows), (1, columns))}
    for dims in ((0,), (1,), (0, 1)):
        found = resized(large, {dim: axes[dim] for dim in dims}, 0.0)
        wanted = large
        for dim in dims:
            wanted = wanted.index_select(dim, rows if dim == 0 else columns)
        assert torch.equal(found, wanted)
        assert found.data_ptr() != large.data_ptr()


def _kept(index: Tensor, none: Tensor) -> Axis:
    return Axis(index=index, new=none, read=none.bool(), moved=index, added={})
