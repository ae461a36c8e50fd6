"""Online learners on a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynopt_ray import online
from dynopt_ray.cluster.learners.actor import LearnerActor
from dynopt_ray.structure import trace
from tests.gpu.stand_in import StandIn

CPU = torch.device("cpu")
Row = tuple[Any, Any]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def learner(device: torch.device | str, **options: Any) -> online.OnlineLearner:
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **options)
    return online.OnlineLearner(
        model,
        optimizer,
        detector="adwin",
        reactions=["raise_rate", "replay"],
        guard=online.Guard(window=8),
        seed=1,
    )


def events(count: int) -> list[Row]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    return [(row, int(row[:3].argmax())) for row in x]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
def test_a_learner_continues_from_a_snapshot(
    gpu: torch.device, options: dict[str, Any], tmp_path: Path
) -> None:
    one = learner(gpu, **options)
    for event in events(40)[:30]:
        one.learn(*event)
    online.save(tmp_path / "state", one)
    two, there = learner(gpu, **options), learner(CPU)
    for other in (two, there):
        online.load(tmp_path / "state", other)
        assert same(one.model, other.model)
    assert not there.optimizer.param_groups[0]["fused"]
    for event in events(40)[30:]:
        for each in (one, two, there):
            each.learn(*event)
    assert same(one.model, two.model)
    for name, value in options.items():
        assert two.optimizer.param_groups[0][name] is value
    assert {p.device for p in there.model.parameters()} == {CPU}


def test_a_learner_leaves_the_generators_of_all_gpus_alone(gpus: StandIn) -> None:
    """It draws on the second GPU, while the first is the current one."""
    torch.cuda.manual_seed_all(5)
    expected = [torch.rand(3, device=f"cuda:{index}") for index in range(2)]
    torch.cuda.manual_seed_all(5)
    first, second = learner("cuda:1"), learner("cuda:1")
    torch.cuda.manual_seed_all(5)
    for event in events(12):
        first.learn(*event)
    for index in range(2):
        assert torch.equal(torch.rand(3, device=f"cuda:{index}"), expected[index])
    torch.rand(7, device="cuda:1")  # what others draw does not change what it learns
    for event in events(12):
        second.learn(*event)
    assert same(first.model, second.model)
    assert gpus.counts.num_waits > 0


@pytest.mark.parametrize("build", [lambda: learner("cuda:0"), lambda: learner("cpu")])
def test_answers_of_an_actor_are_on_the_cpu(
    gpu: torch.device, build: Callable[[], online.OnlineLearner], tmp_path: Path
) -> None:
    """A driver without a GPU can read them."""
    assert gpu == torch.device("cuda:0")
    actor = LearnerActor(build, tmp_path, snapshot_every=10, num_threads=1)
    ack = actor.learn(1, events(4))
    assert [type(result) for result in ack.results] == [online.LearnResult] * 4
    outputs = [r.output for r in ack.results if isinstance(r, online.LearnResult)]
    assert {output.device for output in [*outputs, actor.predict(events(1)[0][0])]} == {CPU}
    assert all(isinstance(output, Tensor) and len(output) for output in outputs)
    actor.close()
    again = LearnerActor(build, tmp_path, snapshot_every=10, num_threads=1)
    assert again.status().sequence == 4
    again.close()


def test_events_may_be_on_the_gpu(gpu: torch.device) -> None:
    one, other = learner(gpu), learner(gpu)
    for x, y in events(6):
        one.learn(x, y)
        other.learn(torch.from_numpy(x).to(gpu), torch.tensor(y, device=gpu))
    assert same(one.model, other.model)


class AtEvent:
    """Finds drift at one event."""

    def __init__(self, event: int) -> None:
        self._left = event

    def update(self, error: float) -> bool:
        del error
        self._left -= 1
        return self._left == 0

    def state_dict(self) -> dict[str, Any]:
        return {"left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._left = state["left"]


def test_streams_are_evaluated_and_networks_widened(gpu: torch.device) -> None:
    x, y = (np.array(part) for part in zip(*events(120), strict=True))
    stream = online.ArrayStream(x, y, drifts=[online.Drift(at=60, kind="labels")])
    model = network().to(gpu)
    one = online.OnlineLearner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        detector=AtEvent(60),
        reactions=["grow", "replay"],
        structure=trace(model, torch.zeros(2, 4)),
    )
    torch.set_default_device(gpu)
    try:
        table = online.evaluate(stream, one, window=20)
    finally:
        torch.set_default_device(None)
    assert len(table) == 6
    assert model.get_parameter("0.weight").shape == (10, 4)
    assert {p.device for p in model.parameters()} == {gpu}
