"""Masks that are compensated: exact where the rest can express what goes, least squares else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Graph, Mask, Shrink, trace
from tests.structure.editing import assert_same, everything
from tests.structure.test_compensate import CONSUMERS
from tests.structure.zoo import NETWORKS, trained


def random_masks(graph: Graph, *, remove: float = 0.5) -> list[Mask]:
    """Masks over all weights, drawn anew."""
    generator = torch.Generator().manual_seed(7)
    return [
        Mask(name, keep=torch.rand(p.shape, generator=generator) >= remove)
        for name, p in graph.model.named_parameters()
        if p.ndim > 1
    ]


@pytest.mark.parametrize("name", CONSUMERS)
def test_weights_that_others_can_express_are_masked_without_loss(name: str) -> None:
    """Units 2 and 3 are equal, so what the weights of unit 2 gave those of unit 3 can give."""
    torch.manual_seed(0)
    build, shape = CONSUMERS[name]
    model = build().eval()
    first = next(iter(model.children()))
    assert isinstance(first, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    with torch.no_grad():
        assert first.bias is not None
        for unit in (2, 6):  # two, for a convolution of two groups
            first.weight[unit] = first.weight[unit + 1]
            first.bias[unit] = first.bias[unit + 1]
    batches = [torch.randn(16, *shape) for _ in range(6)]
    before = model(batches[0])
    graph = trace(model, batches[0])
    [reading] = [s for s in graph["0"].slices if s.role == "in"]
    keep = torch.ones_like(model.get_parameter(reading.parameter), dtype=torch.bool)
    keep.index_fill_(reading.dim, reading.positions[2], value=False)
    if keep.ndim > 2:  # not all of a unit: single places of a kernel
        keep[:, ..., -1] = True
    receipt = graph.apply(Mask(reading.parameter, keep=keep), compensate=batches)
    assert receipt.refitted == (reading.parameter,)
    assert not model.get_parameter(reading.parameter)[~keep].any()
    error = (model(batches[0]) - before).square().mean() / before.var()
    assert error < 1e-3  # what the ridge costs; without compensation it is above 0.02


def test_is_the_least_squares_fit_of_each_row() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    inputs = torch.randn(4000, 6)
    hidden, target = model[:2](inputs).detach(), model(inputs).detach()
    keep = torch.rand(4, 10) > 0.5
    keep[3] = False  # a row that keeps nothing gives its mean
    trace(model, inputs).apply(Mask("2.weight", keep=keep), compensate=torch.split(inputs, 500))
    reached = (model(inputs) - target).square().mean(0)
    for row in range(4):
        design = torch.cat([hidden[:, keep[row]], torch.ones(4000, 1)], 1).double()
        best = torch.linalg.lstsq(design, target[:, row, None].double()).solution
        limit = (design @ best - target[:, row, None]).square().mean()
        assert reached[row] <= limit * 1.01


@pytest.mark.parametrize("name", NETWORKS)
def test_lowers_the_error_of_every_network(name: str) -> None:
    plain, inputs = trained(name)
    refitted = copy.deepcopy(plain)
    many = torch.cat([NETWORKS[name].inputs() for _ in range(24)])
    target = plain(inputs)
    errors = []
    for model, compensate in ((plain, None), (refitted, [many, inputs])):
        graph = trace(model, inputs)
        graph.apply(random_masks(graph), compensate=compensate)
        errors.append((model(inputs) - target).square().mean().item())
    assert errors[1] < errors[0]


def test_masks_of_a_plan_are_compensated_together_and_in_forward_order() -> None:
    """The second layer is refitted on what the first gives once it is masked and refitted."""
    errors = []
    for together in (True, False):
        model, inputs = trained("mlp")
        target: Tensor = model(inputs)
        graph = trace(model, inputs)
        plan = random_masks(graph)
        names = tuple(mask.parameter for mask in plan)
        if together:
            assert graph.apply(plan, compensate=inputs).refitted == names
        else:  # last layer first, on inputs that it will not get
            for mask in reversed(plan):
                graph.apply(mask, compensate=inputs)
        errors.append((model(inputs) - target).square().mean().item())
    assert errors[0] < errors[1]


def test_undo_is_bit_exact_and_the_optimizer_follows() -> None:
    model, inputs = trained("vgg")
    optimizer = torch.optim.Adam(model.parameters())
    model(inputs).square().mean().backward()
    optimizer.step()
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    plan = random_masks(graph)
    receipt = graph.apply(plan, optimizer=optimizer, compensate=inputs)
    for mask in plan:
        parameter = model.get_parameter(mask.parameter)
        assert not optimizer.state[parameter]["exp_avg"][~mask.keep].any()
    receipt.undo()
    assert_same(everything(model, optimizer, graph), before)


def test_units_go_under_a_mask_that_holds() -> None:
    """What reads removed units is refitted within its mask, better than if it were not."""
    errors: list[float] = []
    for compensate in (False, True):
        model, inputs = trained("mlp")
        graph = trace(model, inputs)
        keep = torch.rand(model.get_parameter("2.weight").shape) > 0.3
        graph.apply(Mask("2.weight", keep=keep))
        target: Tensor = model(inputs)
        remove = [0, 2, 5]
        graph.apply(Shrink("0", remove=remove), compensate=inputs if compensate else None)
        stays = [unit for unit in range(keep.shape[1]) if unit not in remove]
        assert not model.get_parameter("2.weight")[~keep[:, stays]].any()
        errors.append((model(inputs) - target).square().mean().item())
    assert errors[1] < errors[0]


def test_a_mask_that_only_gives_weights_back_refits_nothing() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    keep = torch.ones_like(model.get_parameter("2.weight"), dtype=torch.bool)
    keep[0, :3] = False
    graph.apply(Mask("2.weight", keep=keep))
    before = copy.deepcopy(model.state_dict())
    wider = keep.clone()
    wider[0, 0] = True
    receipt = graph.apply(Mask("2.weight", keep=wider), compensate=inputs)
    assert receipt.refitted == ()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
