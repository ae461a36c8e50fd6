"""Single values of a saved state that cannot be right, each refused by its name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import Guard, OnlineLearner, Widen
from dynopt_ray.policies import DQNPolicy, DuelingNetwork, QTable
from dynopt_ray.storage import write_state
from dynopt_ray.structure import trace
from dynopt_ray.training import Hypergradient, Plateau
from tests.forged.cases import taught
from tests.online.learners import learner, network, state_bytes

State = dict[str, Any]


def built() -> OnlineLearner:
    model = network()
    return learner(
        model,
        structure=trace(model, torch.zeros(2, 4)),
        guard=Guard(window=8),
        detector="adwin",
        reactions=["raise_rate", "replay", Widen()],
    )


def put(*path: Any) -> Callable[[State], None]:
    """Return a change of a state: a value at the end of a path of keys."""
    *keys, last, value = path

    def change(state: State) -> None:
        holder: Any = state
        for key in keys:
            holder = holder[key]
        holder[last] = value

    return change


WRONG: dict[str, tuple[Callable[[State], None], str]] = {
    "a negative count": (put("counters", "events", -1), "counters.events is -1"),
    "a count that is no number": (put("counters", "updates", "7"), "counters.updates is '7'"),
    "a count that is true": (put("counters", "draws", True), "counters.draws is True"),
    "a huge count": (put("counters", "events", 10**30), "counters.events is 1000"),
    "a shape that is none": (put("counters", "event_shape", [-4]), "counters.event_shape"),
    "another counter": (put("counters", "more", 1), "counters.more is 1"),
    "a mode that is a number": (put("modes", "0", 1), "modes.0 is 1"),
    "a weight that is a list": (put("model", "0.bias", [1.0]), r"model.0.bias is \[1.0\]"),
    "a mask of another shape": (
        put("masks", "0.weight", torch.ones(2, dtype=torch.bool)), "mask '0.weight' of the state"
    ),
    "a mask of another type": (put("masks", "0.bias", torch.ones(6)), "mask '0.bias' of the state"),
    "a width that no file has room for": (put("structure", "widths", "0", 10**9), "widths of the"),
    "a group that there is not": (put("structure", "widths", "9", 4), "widths of the state belong"),
    "a rate that is no number": (put("rates", "own", [float("nan")]), "rates.own.0 is nan"),
    "a rate too many": (put("rates", "own", [0.1, 0.1]), "the state has the rates of 2"),
    "a boost of zero": (put("rates", "boost", 0.0), "rates.boost is 0.0"),
    "a boost beyond all bounds": (put("rates", "boost", 1e308), "rates.boost is 1e"),
    "events without targets": (
        lambda state: state["memory"].pop("y"), r"its events are \['x'\]"
    ),
    "more events than targets": (put("memory", "x", torch.ones(9, 4)), "latest events have the"),
    "events of another shape": (put("memory", "x", torch.ones(8, 5)), "latest events have the"),
    "an event that is not finite": (
        put("memory", "x", torch.full((12, 4), torch.nan)), "x of its events is not finite"
    ),
    "a reason without an event": (
        put("quarantine", "latest", [["why", 3]]), "instead of the number of an event"
    ),
    "a log that is no log": (put("detector", "errors", torch.ones(2, 2)), "it is no log"),
    "a log that is not finite": (
        put("detector", "errors", torch.full((3,), torch.nan).double()), "errors that are not"
    ),
    "a missing detector": (put("detector", None), "only one of the learner and the state has a"),
    "a missing reaction": (put("reactions", []), "the learner has 3 reactions"),
    "a boost that began at no event": (put("reactions", 0, "since", "now"), "it names no event"),
    "a replay with a state": (put("reactions", 1, {"a": 1}), "this reaction has none"),
    "first widths of other groups": (
        put("reactions", 2, "first_widths", {"9": 3}), "Widen: the initial widths are"
    ),
    "parameters of another optimizer": (
        put("optimizer", "groups", 0, "params", [0, 1, 2, 7]), "names other parameters"
    ),
    "state of no parameter": (put("optimizer", "state", "9", {}), "has the parameter '9'"),
    "a moment of another shape": (
        put("optimizer", "state", "0", "momentum_buffer", torch.ones(2)), "not a tensor of shape"
    ),
    "an option of another type": (
        put("optimizer", "groups", 0, "momentum", "much"), "SGD cannot have momentum = 'much'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_part_of_a_learners_state_is_named_and_changes_nothing(
    kind: str, tmp_path: Path
) -> None:
    subject, saved = built(), built()
    for one, seed in ((subject, 1), (saved, 2)):
        taught(one, seed=seed)
    state, before = saved.state_dict(), state_bytes(subject, tmp_path)
    change, reason = WRONG[kind]
    change(state)
    with pytest.raises(CheckpointError, match=reason):
        subject.load_state_dict(state)
    assert state_bytes(subject, tmp_path) == before


def test_a_boost_from_the_future_does_not_overflow() -> None:
    subject = built()
    taught(subject, seed=1)
    state = subject.state_dict()
    state["reactions"][0]["since"] = 2**61
    subject.load_state_dict(state)
    taught(subject, seed=2)
    assert subject.rates.boost == 4.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"best_loss": "low"},
        {"best_loss": float("nan")},
        {"num_bad": -1},
        {"num_bad": 0.5},
        {"best": {"model": {}}},
        {"best": []},
        {"best": {"model": None, "optimizer": None}},
    ],
)
def test_a_wrong_state_of_a_plateau_is_refused(wrong: State) -> None:
    model = nn.Linear(2, 1)
    plateau = Plateau(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    plateau.observe(1.0)
    before = copy.deepcopy(plateau.state_dict())
    with pytest.raises(CheckpointError, match="Plateau: the"):
        plateau.load_state_dict({**before, **wrong})
    assert repr(plateau.state_dict()) == repr(before)


@pytest.mark.parametrize(
    "optimizer", [{}, {"state": [], "groups": {}}, {"state": {}, "groups": []}]
)
def test_a_best_state_of_another_optimizer_is_refused(optimizer: State) -> None:
    model = nn.Linear(2, 1)
    plateau = Plateau(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    plateau.observe(1.0)
    state = plateau.state_dict()
    state["best"]["optimizer"] = optimizer
    with pytest.raises(CheckpointError, match=r"no state of SGD|groups of"):
        plateau.load_state_dict(state)


@pytest.mark.parametrize("directions", [None, "up", [1.0], [torch.ones(2, dtype=torch.int64)]])
def test_wrong_directions_of_a_hypergradient_are_refused(directions: Any) -> None:
    model = nn.Linear(2, 1)
    made = Hypergradient(torch.optim.SGD(model.parameters(), lr=0.1), hyper_lr=0.1)
    with pytest.raises(CheckpointError, match="Hypergradient: the directions are"):
        made.load_state_dict({"directions": directions})


def policy_state() -> State:
    network = DuelingNetwork(5, 3, [16, 8], 4)
    return {
        "hidden": [16, 8],
        "head": 4,
        "num_actions": 3,
        "num_action_features": 0,
        "tensors": network.state_dict(),
        "metadata": {},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        put("hidden", []),
        put("hidden", [16]),
        put("hidden", [16, 8.0]),
        put("hidden", 16),
        put("hidden", [1] * 10_000),
        put("head", True),
        put("head", -4),
        put("num_actions", 4),
        put("num_actions", 0),
        put("num_actions", 10**9),
        put("num_action_features", 2),
        put("num_action_features", -1),
        put("num_action_features", True),
        put("tensors", {}),
        put("tensors", "encoder.0.weight", torch.ones(16)),
        put("tensors", "encoder.0.bias", torch.full((16,), torch.nan)),
        put("tensors", "encoder.0.bias", torch.ones(16, dtype=torch.float64)),
        put("tensors", "encoder.0.bias", [0.0]),
        put("metadata", None),
        put("more", 1),
    ],
)
def test_a_wrong_policy_is_refused(wrong: Callable[[State], None], tmp_path: Path) -> None:
    state = policy_state()
    wrong(state)
    write_state(tmp_path / "policy", state, kind="policy")
    with pytest.raises(CheckpointError, match="holds a policy that this release cannot read"):
        DQNPolicy.load(tmp_path / "policy")


def test_widths_that_a_policy_only_claims_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    linear = nn.Linear.reset_parameters

    def noted(self: nn.Linear) -> None:
        devices.append(self.weight.device.type)
        linear(self)

    monkeypatch.setattr(nn.Linear, "reset_parameters", noted)
    write_state(tmp_path / "policy", {**policy_state(), "hidden": [2_000, 8]}, kind="policy")
    devices.clear()
    with pytest.raises(CheckpointError, match="size mismatch"):
        DQNPolicy.load(tmp_path / "policy")
    assert set(devices) == {"meta"}


@pytest.mark.parametrize(
    "wrong",
    [
        put("edges", []),
        put("edges", [[0, [0.5]], [0, [0.5]]]),
        put("edges", [[-1, [0.5]]]),
        put("edges", [["0", [0.5]]]),
        put("edges", [[0, [float("nan")]]]),
        put("edges", [[0, 0.5]]),
        put("num_actions", 2.0),
        put("num_actions", 10**9),
        put("cells", [[7], [1]]),
        put("cells", [[0], [0]]),
        put("cells", [[0, 0], [1, 0]]),
        put("cells", [[0]]),
        put("values", torch.ones(2, 3)),
        put("values", torch.full((2, 2), torch.inf).double()),
        put("visits", torch.full((2, 2), -1)),
        put("visits", None),
    ],
)
def test_a_wrong_q_table_is_refused(wrong: Callable[[State], None], tmp_path: Path) -> None:
    state = {
        "edges": [[0, [0.5]]],
        "num_actions": 2,
        "cells": [[0], [1]],
        "values": torch.zeros(2, 2, dtype=torch.float64),
        "visits": torch.zeros(2, 2, dtype=torch.int64),
    }
    write_state(tmp_path / "table", state, kind="Q-table")
    assert len(QTable.load(tmp_path / "table").values) == 2
    wrong(state)
    write_state(tmp_path / "table", state, kind="Q-table")
    with pytest.raises(CheckpointError, match="holds a Q-table that this release cannot read"):
        QTable.load(tmp_path / "table")
