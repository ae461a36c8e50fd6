"""Policies that cut once, on a network whose best smaller one is known."""

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.policies import AllocatedCut, LadderCut, SingleCut, WholeCut
from dynopt_ray.tasks import Task
from tests.policies.test_policies_cuts import cut

USEFUL = 4


def planted(width: int = 32) -> tuple[nn.Module, Task]:
    """A network of which `USEFUL` units decide the class, and the others do nothing."""
    generator = torch.Generator().manual_seed(1)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2 * USEFUL))

    model = network()
    useful = torch.randperm(width, generator=generator)[:USEFUL]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        into, bias, out = model[0].weight, model[0].bias, model[2].weight  # type: ignore[index]
        into[useful] = torch.eye(6)[:USEFUL] * 2
        bias[useful] = 0.0
        out[:] = 0.0
        out[:USEFUL, useful] = 3 * torch.eye(USEFUL)
        out[USEFUL:, useful] = -3 * torch.eye(USEFUL)
        model[2].bias.zero_()  # type: ignore[index]
    x = torch.randn(1_200, 6, generator=generator)
    y: Tensor = model(x).argmax(1)
    parts = {"train": (x[:600], y[:600]), "validation": (x[600:], y[600:])}
    return model, Task.from_arrays(model=network, **parts)  # type: ignore[arg-type]


def widths_to_try(*widths: int) -> LadderCut:
    return LadderCut(tuple(WholeCut(units={"0": width}) for width in widths))


@pytest.mark.parametrize("cost_weight", [0.01, 0.1])
def test_a_ladder_finds_the_known_optimum(cost_weight: float) -> None:
    model, task = planted()
    policy = widths_to_try(32, 16, 8, 5, USEFUL, 3, 2, 1)
    result = cut(policy, model, task, cost_weight=cost_weight)
    assert result.after.widths == {"0": USEFUL}
    assert result.after.validation.metric == 1.0


def test_the_allocation_finds_the_known_optimum() -> None:
    model, task = planted()
    result = cut(AllocatedCut(), model, task, cost_weight=0.1)
    assert USEFUL <= result.after.widths["0"] <= USEFUL + 1
    assert result.after.validation.metric == 1.0


def test_a_single_cut_of_the_useless_units_changes_nothing() -> None:
    model, task = planted()
    result = cut(SingleCut(remove_units=1 - USEFUL / 32), model, task)
    assert result.after.widths == {"0": USEFUL}
    assert result.after.validation.loss == pytest.approx(result.before.validation.loss, abs=1e-4)


def test_nothing_is_cut_if_cost_is_free() -> None:
    for policy in (widths_to_try(3, 32), AllocatedCut()):
        model, task = planted()
        result = cut(policy, model, task, cost_weight=0.0)
        assert result.plan == ()
        assert result.after == result.before
