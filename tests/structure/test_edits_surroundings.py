"""What edits leave alone (identity, modes, random state) and what they refuse."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure import Edit, Grow, Mask, Shrink, plan_from_json, plan_to_json, trace
from tests.structure.editing import assert_same, everything, step
from tests.structure.zoo import trained


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
        (lambda: Shrink("0", remove=cast(Any, torch.tensor([1.5]))), "sequence of unit indices"),
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


def test_the_callers_mask_is_copied() -> None:
    model, inputs = trained("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = torch.rand(9, 12) > 0.5
    trace(model, inputs).apply([Mask("2.weight", keep=keep)], optimizer=optimizer)
    weight = model.get_parameter("2.weight")
    nonzero = int(weight.count_nonzero())
    keep[:] = False
    step(model, inputs, optimizer)
    assert int(weight.count_nonzero()) == nonzero > 0


def test_a_network_that_others_resized_is_noticed() -> None:
    model, inputs = trained("mlp")
    one, other = trace(model, inputs), trace(model, inputs)
    one.apply([Shrink("0", remove=[3])])
    for use in (lambda: other.apply([Grow("0", units=1)]), other.cost):
        with pytest.raises(EditError, match=r"'0\.(weight|bias)' has the shape .*; trace it again"):
            use()
    one.receipts[-1].undo()
    other.apply([Grow("0", units=1)])
    with pytest.raises(EditError, match="trace it again"):
        one.apply([Grow("0", units=1)])


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
    for text, message in [
        ("{", "not a plan: JSONDecodeError"),
        ('[{"edit": "widen"}]', "unknown edit 'widen'"),
        ("[1]", "not a plan: TypeError"),
        ('[{"edit": "grow", "group": "0"}]', "not a plan: TypeError.*'units'"),
    ]:
        with pytest.raises(EditError, match=message):
            plan_from_json(text)
