"""Edits against references: grown = old, shrunk = masked, a step after = one on the masked."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure import (
    Edit,
    Graph,
    Grow,
    Mask,
    Shrink,
    mask_of,
    measure,
    plan_from_json,
    plan_to_json,
    trace,
)
from dynopt_ray.structure.transaction import Transaction
from tests.structure.zoo import NETWORKS, trained

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "fused_adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", NETWORKS)
def test_growth_keeps_the_output(name: str, init: Any) -> None:
    model, inputs = trained(name)
    before = model(inputs)
    graph = trace(model, inputs)
    graph.apply([Grow(group.name, units=3, init=init) for group in graph])
    assert graph.widths == {n: w + 3 for n, w in NETWORKS[name].widths.items()}
    torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", NETWORKS)
def test_new_units_learn_within_two_steps(name: str, init: Any) -> None:
    model, inputs = trained(name)
    # Enough samples that no unit is silent on all of them.
    inputs = torch.cat([inputs, *(NETWORKS[name].inputs() for _ in range(63))])
    graph = trace(model, inputs)
    graph.apply([Grow(group.name, units=2, init=init) for group in graph])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = {group.name: torch.zeros(2, dtype=torch.bool) for group in graph}
    for _ in range(2):
        step(model, inputs, optimizer)
        tensors = dict(model.named_parameters())
        for group in graph:
            for s in group.slices:
                if s.role == "out" and (gradient := tensors[s.parameter].grad) is not None:
                    rows = gradient.index_select(s.dim, s.positions[-2:].flatten())
                    size = rows.transpose(0, s.dim).reshape(2, -1).abs().sum(1)
                    moved[group.name] |= size > 0
    assert all(bool(units.all()) for units in moved.values()), moved


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_drift_apart(name: str) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    width = graph.groups[0].width
    graph.apply([Grow(graph.groups[0].name, units=width, init="split")])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model, inputs, optimizer)
    producer = next(s for s in graph.groups[0].slices if s.role == "out")
    weight = dict(model.named_parameters())[producer.parameter].transpose(0, producer.dim)
    one, other = weight[producer.positions[0]], weight[producer.positions[width]]
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name: str) -> None:
    model, inputs = trained(name)
    masked = copy.deepcopy(model)
    graph = trace(model, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(trace(masked, inputs), removed)
    graph.apply([Shrink(group, remove=units) for group, units in removed.items()])
    torch.testing.assert_close(model(inputs), masked(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["mlp", "resnet"], OPTIMIZERS),
        # Not Rprop: key biases have gradients of zero but for rounding, and it takes their sign.
        *itertools.product(["attention"], OPTIMIZERS.keys() - {"rprop"}),
    ],
)
def test_step_after_shrink_equals_step_on_masked(name: str, kind: str) -> None:
    model, inputs = in_double(name)
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    masked = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](masked.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    graph, full = trace(model, inputs), trace(masked, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(full, removed)
    graph.apply([Shrink(g, remove=units) for g, units in removed.items()], optimizer=optimizer)
    for _ in range(2):
        step(model, inputs, optimizer)
        step(masked, inputs, reference)
        silence(full, removed)
    expected = shrunk_by_hand(masked, full, removed)
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_after_growth_equals_step_before_it(kind: str) -> None:
    model, inputs = in_double("vgg")
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    old = copy.deepcopy(model)
    reference = OPTIMIZERS[kind](old.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    graph = trace(model, inputs)
    added = {group.name: (group.width, group.width + 1) for group in graph}
    graph.apply([Grow(group, units=2) for group in added], optimizer=optimizer)
    step(model, inputs, optimizer)
    step(old, inputs, reference)
    kept = shrunk_by_hand(model, graph, added)
    for parameter, value in old.named_parameters():
        torch.testing.assert_close(kept[parameter], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_new_units_is_that_of_a_new_parameter(kind: str) -> None:
    model, inputs = trained("mlp")
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    trace(model, inputs).apply([Grow("0", units=2)], optimizer=optimizer)
    twin = nn.Parameter(torch.zeros(2, 7))
    twin.grad = torch.zeros(2, 7)
    fresh = OPTIMIZERS[kind]([twin])
    fresh.step()
    weight = model.get_parameter("0.weight")
    for key, value in optimizer.state[weight].items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            assert torch.equal(value[12:], fresh.state[twin][key]), key


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masked_weights_stay_zero_through_training(kind: str) -> None:
    model, inputs = trained("vgg")
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    weight = model.get_parameter("3.weight")
    keep = torch.rand(weight.shape) > 0.5
    keys = model.state_dict().keys()
    trace(model, inputs).apply([Mask("3.weight", keep=keep)], optimizer=optimizer)
    before = weight.detach().clone()
    for _ in range(3):
        step(model, inputs, optimizer)
    assert torch.equal(weight == 0, ~keep)
    assert not torch.equal(weight, before)
    assert isinstance(weight, nn.Parameter)
    assert model.state_dict().keys() == keys


def test_mask_follows_its_parameter() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    keep = torch.rand(9, 12) > 0.5
    graph.apply([Mask("2.weight", keep=keep)])
    graph.apply([Shrink("0", remove=[0, 5]), Grow("2", units=2)])
    mask = mask_of(model.get_parameter("2.weight"))
    kept = [u for u in range(12) if u not in (0, 5)]
    assert mask is not None
    assert torch.equal(mask, torch.cat([keep[:, kept], torch.ones(2, 10, dtype=torch.bool)]))
    assert torch.equal(model.get_parameter("2.weight")[:9] == 0, ~keep[:, kept])


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_graph_stays_what_tracing_would_find(name: str, data: st.DataObject) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    for _ in range(3):
        plan = data.draw(plans(graph))
        graph.apply(plan)
        assert graph.cost() == measure(model, inputs)
        again = trace(model, inputs)
        assert [(g.name, g.width) for g in graph] == [(g.name, g.width) for g in again]
        for one, other in zip(graph, again, strict=True):
            for mine, theirs in zip(one.slices, other.slices, strict=True):
                assert torch.equal(mine.positions, theirs.positions)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_undo_is_bit_exact(name: str, data: st.DataObject) -> None:
    model, inputs = trained(name)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    states, receipts = [], []
    for _ in range(2):
        states.append(everything(model, optimizer, graph))
        receipts.append(graph.apply(data.draw(plans(graph)), optimizer=optimizer))
        step(model, inputs, optimizer)
    with pytest.raises(EditError, match="newest first"):
        receipts[0].undo()
    receipts[1].undo()
    receipts[0].undo()
    # Tensors that no edit touched have moved on with training: all of these were touched.
    touched = {
        s.parameter for group in graph if group.name in receipts[0].widths for s in group.slices
    }
    for key, value in everything(model, optimizer, graph).items():
        if not isinstance(value, Tensor):
            assert value == states[0][key], key
        elif key.split()[-1] in touched:
            assert torch.equal(value, states[0][key]), key
    with pytest.raises(EditError, match="undone or committed"):
        receipts[0].undo()


@pytest.mark.parametrize("name", ["mlp", "resnet", "attention", "mobile"])
def test_undo_right_after_restores_everything(name: str) -> None:
    model, inputs = trained(name)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    plan: list[Edit] = [Shrink(g.name, remove=every_second(g.width)) for g in graph]
    plan += [Grow(group.name, units=5) for group in graph]
    graph.apply(plan, optimizer=optimizer).undo()
    assert_same(everything(model, optimizer, graph), before)


@pytest.mark.parametrize("fails_at", range(0, 40, 3))
def test_failed_plan_leaves_no_trace(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = trained("attention")
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    plan: list[Edit] = [
        Shrink("qkv", remove=[0]),
        Mask("head.weight", keep=torch.rand(5, 10) > 0.5),
        Grow("embed", units=3),
    ]
    calls = itertools.count()
    broken = False

    def failing(method: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal broken
            if next(calls) == fails_at:
                broken = True
                raise MemoryError("planned")
            return method(*args)

        return call

    for method in ("assign", "set_attribute", "set_state", "set_mask"):
        monkeypatch.setattr(Transaction, method, failing(getattr(Transaction, method)))
    try:
        graph.apply(plan, optimizer=optimizer)
    except MemoryError:
        assert broken
        monkeypatch.undo()
        assert_same(everything(model, optimizer, graph), before)
        graph.apply(plan, optimizer=optimizer)
    else:
        assert not broken


def test_committed_plans_free_what_undo_would_need() -> None:
    model, inputs = trained("mlp")
    graph = trace(model, inputs)
    old = weakref.ref(model.get_parameter("0.weight").data.untyped_storage())
    receipt = graph.apply([Shrink("0", remove=[1])])
    gc.collect()
    assert old() is not None
    graph.commit()
    gc.collect()
    assert old() is None
    with pytest.raises(EditError, match="undone or committed"):
        receipt.undo()
    graph.apply([Grow("0", units=1)]).undo()


def test_identity_of_parameters_survives() -> None:
    model, inputs = trained("vgg")
    parameters, buffers = list(model.parameters()), list(model.buffers())
    optimizer = torch.optim.Adam(parameters)
    trace(model, inputs).apply([Shrink("0", keep=[1, 2]), Grow("9", units=4)], optimizer=optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert optimizer.param_groups[0]["params"] == parameters or all(
        a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True)
    )


def test_gradients_follow() -> None:
    model, inputs = trained("mlp")
    model(inputs).sum().backward()
    before = model.get_parameter("2.weight").grad
    assert before is not None
    trace(model, inputs).apply([Shrink("0", keep=[3, 7]), Grow("2", units=1)])
    after = model.get_parameter("2.weight").grad
    assert after is not None
    assert torch.equal(after, torch.cat([before[:, [3, 7]], torch.zeros(1, 2)]))


def test_loss_that_is_still_held_does_no_harm() -> None:
    model, inputs = trained("mlp")
    held = model(inputs).sum()
    graph = trace(model, inputs)
    graph.apply([Shrink("0", keep=[3, 7])])
    model(inputs).sum().backward()
    assert held.requires_grad


def test_frozen_parameters_stay_frozen() -> None:
    model, inputs = trained("mlp")
    model.get_parameter("0.weight").requires_grad_(False)
    trace(model, inputs).apply([Grow("0", units=2), Shrink("2", remove=[1])])
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]


def test_channels_last_stays_channels_last() -> None:
    model, inputs = trained("vgg")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trace(model, inputs).apply([Grow("0", units=2)])
    weight = model.get_parameter("3.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_edits_are_deterministic_and_leave_random_state_alone() -> None:
    def grown() -> Tensor:
        model, inputs = trained("mlp", seed=3)
        graph = trace(model, inputs)
        state = torch.get_rng_state()
        graph.apply([Grow("0", units=2)])
        graph.apply([Grow("0", units=2)])
        assert torch.equal(state, torch.get_rng_state())
        return model.get_parameter("0.weight").detach()

    one, other = grown(), grown()
    assert torch.equal(one, other)
    assert not torch.equal(one[12:14], one[14:16])


def test_growth_that_cannot_be_exact_must_be_allowed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    graph = trace(model, torch.randn(3, 4))
    assert not graph["0"].exact_growth
    with pytest.raises(EditError, match="Pass exact=False"):
        graph.apply([Grow("0", units=2)])
    graph.apply([Grow("0", units=2, exact=False)])
    norm = model[1]
    assert isinstance(norm, nn.LayerNorm)
    assert tuple(norm.normalized_shape) == (8,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grow("0", units=0), "adds nothing"),
        (lambda: Grow("0", units=True), "adds nothing"),
        (lambda: Shrink("0"), "either remove=… or keep=…"),
        (lambda: Shrink("0", remove=[1], keep=[0]), "either remove=… or keep=…"),
        (lambda: Shrink("0", remove=cast(Any, torch.tensor([1.5]))), "integer unit indices"),
        (lambda: Mask("2.weight", keep=torch.ones(9, 12)), "bool tensor"),
    ],
)
def test_edits_refuse_nonsense(make: Callable[[], object], message: str) -> None:
    with pytest.raises(EditError, match=message):
        make()


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        ([], EditError, "empty"),
        ([Shrink("0", remove=[])], EditError, "removes nothing"),
        ([Shrink("0", keep=range(12))], EditError, "removes nothing"),
        ([Shrink("0", remove=range(12))], EditError, "would leave 0 of 12"),
        ([Shrink("0", remove=[12])], EditError, "no unit 12; they are numbered 0 to 11"),
        ([Shrink("0", remove=[-1])], EditError, "no unit -1"),
        ([Shrink("0", remove=[1, 1])], EditError, "twice"),
        ([Grow("4", units=1)], EditError, "'4' cannot be resized: it is the network's output"),
        ([Grow("3", units=1)], UnknownNameError, "no width group '3'"),
        ([Grow("0", units=1), Shrink("0", remove=[13])], EditError, "numbered 0 to 12"),
        ([Mask("2.weight", keep=torch.zeros(2, 2) > 0)], EditError, r"shape \(2, 2\)"),
        ([Mask("2.weight", keep=torch.ones(9, 12) > 0)], EditError, "keeps every weight"),
        ([Mask("2.wieght", keep=torch.ones(9, 12) > 0)], UnknownNameError, "Did you mean"),
    ],
)
def test_plans_are_checked_before_anything_changes(
    plan: list[Edit], error: type[Exception], message: str
) -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    with pytest.raises(error, match=message):
        graph.apply([*plan, Grow("2", units=1)] if plan else plan, optimizer=optimizer)
    assert_same(everything(model, optimizer, graph), before)


def test_lbfgs_is_refused() -> None:
    model, inputs = trained("mlp")
    with pytest.raises(EditError, match="LBFGS"):
        trace(model, inputs).apply(
            [Grow("0", units=1)], optimizer=torch.optim.LBFGS(model.parameters())
        )


@given(
    st.lists(
        st.one_of(
            st.builds(Grow, st.text(), st.integers(1, 9), st.sampled_from(["fresh", "split"])),
            st.builds(Shrink, st.text(), remove=st.lists(st.integers(0, 99))),
            st.builds(Shrink, st.text(), keep=st.lists(st.integers(0, 99))),
            st.builds(
                lambda name, rows: Mask(name, keep=torch.tensor(rows)),
                st.text(),
                st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1),
            ),
        )
    )
)
def test_plans_survive_json(plan: list[Edit]) -> None:
    assert plan_from_json(plan_to_json(plan)) == plan


def test_text_that_is_no_plan_is_refused() -> None:
    for text in ["{", '[{"edit": "widen"}]', "[1]", '[{"edit": "grow", "group": "0"}]']:
        with pytest.raises(EditError):
            plan_from_json(text)


# References, written the long way.


def in_double(name: str) -> tuple[nn.Module, Tensor]:
    """In double precision: an optimizer that divides by small moments magnifies rounding."""
    model, inputs = trained(name)
    return model.double(), inputs.double() if inputs.is_floating_point() else inputs


def step(model: nn.Module, inputs: Tensor, optimizer: Optimizer) -> None:
    """One step in evaluation mode, so that no batch statistics depend on removed units."""
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def every_second(width: int) -> tuple[int, ...]:
    return tuple(range(0, width - 1, 2)) if width > 1 else ()


def silence(graph: Graph, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Zero all that removed units read, make and give; statistics become neutral."""
    tensors = graph.tensors()
    with torch.no_grad():
        for group, units in removed.items():
            for s in graph[group].slices:
                value = 1.0 if s.parameter.endswith("running_var") else 0.0
                coordinates = s.positions[list(units)].flatten()
                tensors[s.parameter].index_fill_(s.dim, coordinates, value)


def shrunk_by_hand(
    model: nn.Module, graph: Graph, removed: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters())
    kept = {
        (name, dim): torch.ones(size, dtype=torch.bool)
        for name, tensor in tensors.items()
        for dim, size in enumerate(tensor.shape)
    }
    for group, units in removed.items():
        for s in graph[group].slices:
            if s.parameter in tensors:
                kept[s.parameter, s.dim][s.positions[list(units)].flatten()] = False
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        for dim in range(value.ndim):
            value = value.index_select(dim, kept[name, dim].nonzero().flatten())
        result[name] = value
    return result


def plans(graph: Graph) -> st.SearchStrategy[list[Edit]]:
    """Random valid plans that touch each group at most once."""

    @st.composite
    def draw_plan(draw: st.DrawFn) -> list[Edit]:
        plan: list[Edit] = []
        for group in graph:
            choice = draw(st.sampled_from(["leave", "grow", "split", "shrink"]))
            if choice in ("grow", "split"):
                init: Any = "fresh" if choice == "grow" else "split"
                plan.append(Grow(group.name, units=draw(st.integers(1, 4)), init=init))
            elif choice == "shrink" and group.width > 2:
                # At width 1 a new trace may read a convolution of two groups as a depthwise one.
                units = st.integers(0, group.width - 1)
                gone = draw(st.sets(units, min_size=1, max_size=group.width - 2))
                plan.append(Shrink(group.name, remove=sorted(gone)))
        return plan or [Grow(graph.groups[0].name, units=1)]

    return draw_plan()


def everything(model: nn.Module, optimizer: Optimizer, graph: Graph) -> dict[str, Any]:
    """All that an edit may change, by a readable name."""
    found: dict[str, Any] = {"widths": graph.widths, "training": model.training}
    for name, tensor in graph.tensors().items():
        found[f"value {name}"] = tensor.detach().clone()
        if tensor.grad is not None:
            found[f"grad {name}"] = tensor.grad.clone()
        mask = mask_of(tensor)
        found[f"masked {name}"] = None if mask is None else mask.tolist()
        state = optimizer.state.get(tensor, {})
        for key, value in state.items():
            found[f"state {key} {name}"] = value.clone() if isinstance(value, Tensor) else value
    for name, module in model.named_modules():
        for key, number in vars(module).items():
            if isinstance(number, int):
                found[f"attribute {name}.{key}"] = number
    for group in graph:
        for s in group.slices:
            found[f"positions {group.name} {s.dim} {s.parameter}"] = s.positions
    return found


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now.keys() == before.keys()
    for key, value in now.items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
        )
        assert same, key
