"""What trains beside an optimizer goes on after an edit: schedulers, scalers, averages, hooks."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from dynopt_ray.structure import Edit, Graph, Grow, Mask, Shrink, mask_of, trace
from tests.structure.editing import step
from tests.structure.zoo import NETWORKS, trained

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "SWALR": lambda o: SWALR(o, 0.01),
}


def test_every_scheduler_of_torch_is_tested() -> None:
    found = {c for c in vars(lr_scheduler).values() if inspect.isclass(c)}
    base = lr_scheduler.LRScheduler
    names = {c.__name__ for c in found if issubclass(c, base) and not c.__name__.startswith("_")}
    assert names - {"LRScheduler"} | {"SWALR"} == SCHEDULERS.keys()


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("rate", [0.05, torch.tensor(0.05)], ids=["number", "tensor"])
def test_schedules_go_on(kind: str, rate: Any) -> None:
    def options(plan: list[Edit]) -> list[dict[str, Any]]:
        model, inputs = trained("mlp")
        parameters = list(model.parameters())
        groups = [{"params": parameters[i::2], "lr": copy.deepcopy(rate)} for i in (0, 1)]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        scheduler = SCHEDULERS[kind](optimizer)
        seen = []
        for epoch in range(6):
            step(model, inputs, optimizer)
            scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
            if plan and epoch == 2:
                trace(model, inputs).apply(plan, optimizer=optimizer)
            seen += [
                {k: float(v) for k, v in g.items() if k in ("lr", "momentum", "initial_lr")}
                for g in optimizer.param_groups
            ]
        return seen

    mask = Mask("2.weight", keep=torch.rand(9, 12) > 0.5)
    assert options([]) == options([mask, Shrink("0", remove=[1]), Grow("2", units=2)])


def test_gradient_scaler_goes_on() -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def update(scale: float = 1.0) -> float:
        optimizer.zero_grad()
        scaler.scale(scale * model(inputs).square().mean()).backward()
        scaler.unscale_(optimizer)
        if scale == 1.0:  # an edit may come between the two: gradients follow
            trace(model, inputs).apply([Grow("0", units=1)], optimizer=optimizer)
        before = model.get_parameter("2.weight").detach().clone()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(before, model.get_parameter("2.weight"))
        assert moved == (scale == 1.0)
        return scaler.get_scale()

    assert [update(), update(), update(torch.inf), update()] == [1024.0, 2048.0, 1024.0, 1024.0]


@pytest.mark.parametrize(
    "plan", [[Grow("0", units=2)], [Mask("2.weight", keep=torch.arange(108).reshape(9, 12) > 50)]]
)
def test_edit_within_autocast_is_seen_there(plan: list[Edit]) -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs)  # casts of all weights are kept from here on
        receipt = graph.apply(plan)
        after = model(inputs)
        receipt.undo()
        undone = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(undone, model(inputs))
        graph.apply(plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(after, model(inputs), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_average_of_the_grown_is_the_grown_average(name: str) -> None:
    model, inputs = trained(name)
    decay: Any = get_ema_multi_avg_fn
    average = AveragedModel(model, multi_avg_fn=decay(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        step(model, inputs, optimizer)
        average.update_parameters(model)
    old, old_average = copy.deepcopy(model), copy.deepcopy(average)
    graph, averaged = trace(model, inputs), trace(average.module, inputs)
    graph.apply([Grow(g.name, units=1) for g in graph]).undo()  # the two need not be in step
    plan = [Grow(g.name, units=2) for g in graph]
    widths = graph.widths
    graph.apply(plan, optimizer=optimizer, seed=3)
    averaged.apply(plan, seed=3)
    average.update_parameters(model)
    old_average.update_parameters(old)
    for key, value in _without_new(averaged, widths).items():
        expected = dict(old_average.module.state_dict())[key]
        torch.testing.assert_close(value, expected)
    plan_back: list[Edit] = [Shrink(g, keep=range(width)) for g, width in widths.items()]
    graph.apply(plan_back, optimizer=optimizer)
    averaged.apply(plan_back)
    average.update_parameters(model)
    torch.testing.assert_close(average(inputs), average.module(inputs))


def _without_new(graph: Graph, widths: dict[str, int]) -> dict[str, Tensor]:
    """All tensors, cut to the units that came first."""
    tensors = {name: tensor.detach() for name, tensor in graph.tensors().items()}
    kept = {(n, d): torch.ones(s) for n, t in tensors.items() for d, s in enumerate(t.shape)}
    for group in graph:
        for s in group.slices:
            kept[s.parameter, s.dim][s.positions[widths[group.name] :].flatten()] = 0
    for (name, dim), keep in kept.items():
        tensors[name] = tensors[name].index_select(dim, keep.nonzero().flatten())
    return tensors


@pytest.mark.parametrize("init", ["fresh", "split"])
def test_same_seed_makes_the_same_units(init: Any) -> None:
    def grown(seed: int | None, number: int) -> Tensor:
        model, inputs = trained("mlp")
        graph = trace(model, inputs)
        for _ in range(number):
            graph.apply([Grow("0", units=1)]).undo()
        graph.apply([Grow("0", units=3, init=init)], seed=seed)
        graph.apply([Grow("0", units=3, init=init)], seed=seed)
        return torch.cat([model.get_parameter("0.weight").T, model.get_parameter("2.weight")])

    assert torch.equal(grown(5, 0), grown(5, 1))
    assert not torch.equal(grown(5, 0), grown(6, 0))
    assert not torch.equal(grown(None, 0), grown(None, 1))


def test_hooks_stay() -> None:
    model, inputs = trained("mlp")
    seen: list[tuple[str, torch.Size]] = []
    weight, module = model.get_parameter("0.weight"), model.get_submodule("2")
    register: Any = weight.register_hook
    register(lambda grad: seen.append(("gradient", grad.shape)))
    register = weight.register_post_accumulate_grad_hook
    register(lambda parameter: seen.append(("accumulated", parameter.grad.shape)))
    module.register_forward_hook(lambda _, inputs, __: seen.append(("in", inputs[0].shape)))
    register = module.register_full_backward_hook
    register(lambda _, grads, __: seen.append(("back", grads[0].shape)))

    def met() -> dict[str, tuple[int, ...]]:
        seen.clear()
        model(inputs).sum().backward()
        assert len(seen) == 4
        return {name: tuple(shape) for name, shape in seen}

    def expected(width: int) -> dict[str, tuple[int, ...]]:
        whole = (width, 7)
        return {"in": (4, width), "back": (4, width), "gradient": whole, "accumulated": whole}

    assert met() == expected(12)
    graph = trace(model, inputs)
    receipt = graph.apply([Grow("0", units=2), Mask("0.weight", keep=torch.rand(14, 7) > 0.5)])
    assert met() == expected(14)
    graph.apply([Shrink("0", remove=[1])], compensate=inputs)
    assert met() == expected(13)
    graph.receipts[-1].undo()
    receipt.undo()
    assert met() == expected(12)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrizations_of_ones_own_follow() -> None:
    model, inputs = trained("mlp")
    for name in ("0", "2"):
        parametrize.register_parametrization(model.get_submodule(name), "weight", _Doubled())
    graph = trace(model, inputs)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    before = model(inputs)
    graph.apply([Grow("0", units=2), Grow("2", units=3)], optimizer=optimizer)
    torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)
    assert model.get_submodule("0").weight.shape == (14, 7)
    step(model, inputs, optimizer)
    weight = "0.parametrizations.weight.original"
    graph.apply([Mask(weight, keep=model.get_parameter(weight) > 0)], optimizer=optimizer)
    step(model, inputs, optimizer)
    assert mask_of(model.get_parameter(weight)) is not None


def test_normalised_weights_follow() -> None:
    model, inputs = trained("mlp")
    for name in ("0", "2"):
        parametrizations.weight_norm(model.get_submodule(name))
    graph = trace(model, inputs)
    assert graph.widths == {"0": 12, "2": 9}
    before = model(inputs)
    exact = [group.name for group in graph if group.exact_growth]
    if exact:
        graph.apply([Grow(name, units=2) for name in exact])
        torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)
    graph.apply([Shrink("0", remove=[1])])
    step(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1))


def test_weights_of_one_spectral_norm_grow_only_inexactly() -> None:
    model, inputs = trained("mlp")
    for name in ("0", "2"):
        parametrizations.spectral_norm(model.get_submodule(name))
    graph = trace(model, inputs)
    assert graph.widths == {"0": 12, "2": 9}
    assert all("`vdot` in" in group.why_inexact for group in graph)
    graph.apply([Grow("0", units=2, exact=False), Shrink("2", remove=[1])])
    step(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1))
    for name in ("0", "2"):  # the way out
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    graph = trace(model, inputs)
    assert all(group.exact_growth for group in graph)
