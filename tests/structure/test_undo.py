"""Undo, failure and commit: the network is bit for bit what it was, or nothing is kept."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Edit, Grow, Mask, Shrink, measure, trace
from tests.structure.editing import assert_same, every_second, everything, plans, step
from tests.structure.zoo import NETWORKS, trained


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_graph_stays_what_tracing_would_find(name: str, data: st.DataObject) -> None:
    model, inputs = trained(name)
    graph = trace(model, inputs)
    for _ in range(3):
        plan = data.draw(plans(graph))
        graph.apply(plan)
        again = trace(model, inputs)
        assert [(g.name, g.width) for g in graph] == [(g.name, g.width) for g in again]
        for one, other in zip(graph, again, strict=True):
            for mine, theirs in zip(one.slices, other.slices, strict=True):
                assert torch.equal(mine.positions, theirs.positions)
    assert graph.cost() == measure(model, inputs)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, deadline=None)
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
    now = everything(model, optimizer, graph)
    grads = {key for key in now if key.startswith("grad")}
    kept = {key: value for key, value in now.items() if key not in grads}
    assert_same(kept, {key: states[0][key] for key in kept})
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


@pytest.mark.parametrize("kind", ["shrink", "mask"])
def test_undo_after_training_restores_what_was_only_refitted(kind: str) -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    before = everything(model, optimizer, graph)
    weight = model.get_parameter("2.weight")
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    edit = Shrink("0", remove=[1]) if kind == "shrink" else Mask("2.weight", keep=keep)
    receipt = graph.apply([edit], optimizer=optimizer, compensate=inputs)
    assert receipt.refitted == ("2.weight",)
    step(model, inputs, optimizer)
    receipt.undo()
    after = everything(model, optimizer, graph)
    of_bias = [key for key in before if key.endswith("2.bias")]
    assert len(of_bias) > 1
    for key in of_bias:
        assert_same({key: after[key]}, {key: before[key]})


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
