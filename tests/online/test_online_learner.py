"""The learner against a plain torch loop: learning, predicting, rates."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynopt_ray.errors import CheckpointError, DataError, EditError, UnknownNameError
from dynopt_ray.online import Guard, OnlineLearner, load, save
from dynopt_ray.schedules import cosine
from tests.online.learners import SGD, events, learner, network, state_bytes


def test_learning_equals_a_plain_torch_loop() -> None:
    ours, theirs = learner(), network()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for x, y in events(50):
        ours.learn(x, y)
        optimizer.zero_grad()
        F.cross_entropy(theirs(x[None]), y[None]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for mine, reference in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_a_mini_batch_is_one_update_on_the_mean_loss() -> None:
    ours, theirs = learner(), network()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    x = torch.stack([x for x, _ in events(8)])
    y = torch.stack([y for _, y in events(8)])
    result = ours.learn(x, y)
    F.cross_entropy(theirs(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert result.rows == tuple(range(8))
    assert result.event == ours.events == 8
    assert ours.updates == 1
    for mine, reference in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_the_result_is_from_before_learning() -> None:
    subject = learner()
    x, y = events(1)[0]
    before = subject.predict(x)
    result = subject.learn(x, y)
    assert torch.equal(result.output[0], before)
    assert result.loss == pytest.approx(float(F.cross_entropy(before, y)))
    assert result.errors == (float(before.argmax() != y),)
    assert not torch.equal(subject.predict(x), before)


class Alone(nn.Module):
    """A network that gives its one parameter itself, the same for every event."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), -1)


@pytest.mark.parametrize("guard", [None, Guard()])
def test_an_output_that_is_a_view_of_a_weight_does_not_follow_it(guard: Guard | None) -> None:
    subject = learner(Alone(), guard=guard)
    predicted = subject.predict(torch.zeros(4))
    result = subject.learn(torch.zeros(4), 0)
    assert not torch.equal(next(subject.model.parameters()), predicted)
    assert predicted.tolist() == [0.0, 1.0, 2.0]
    assert result.output.tolist() == [[0.0, 1.0, 2.0]]
    assert result.errors == (1.0,)


def test_predicting_changes_nothing(tmp_path: Path) -> None:
    model = network(dropout=0.5, batch_norm=True)
    model[1].eval()  # type: ignore[index]
    subject = learner(model)
    modes = [module.training for module in model.modules()]
    before, random_state = state_bytes(subject, tmp_path), torch.get_rng_state()
    outputs = [subject.predict(torch.ones(5, 4)) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert state_bytes(subject, tmp_path) == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not outputs[0].requires_grad


def test_predicting_is_pure_even_where_the_network_draws_in_eval_mode() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + torch.randn(3)

    subject, random_state = learner(Noisy(4, 3)), torch.get_rng_state()
    subject.predict(torch.ones(4))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_one_event_and_a_mini_batch_predict_alike() -> None:
    subject = learner()
    x = torch.stack([x for x, _ in events(3)])
    torch.testing.assert_close(subject.predict(x)[1], subject.predict(x[1]))
    subject.learn(*events(1)[0])
    assert subject.predict(x[1].tolist()).shape == (3,)
    with pytest.raises(DataError, match=r"shape \(5,\).*shape \(4,\)"):
        subject.predict(torch.ones(5))


def test_learning_does_not_depend_on_the_process_around_it(tmp_path: Path) -> None:
    states = []
    for disturbance in (0, 3):
        subject = learner(network(dropout=0.5))
        random_state = torch.get_rng_state()
        for x, y in events(20):
            torch.rand(disturbance)
            subject.predict(x)
            subject.learn(x, y)
        states.append(state_bytes(subject, tmp_path))
        if not disturbance:
            assert torch.equal(torch.get_rng_state(), random_state)
    assert states[0] == states[1]


def test_dropout_differs_between_updates_and_seeds() -> None:
    x, y = events(1)[0]
    model = network(dropout=0.5)

    def first_step(seed: int, updates: int) -> Tensor:
        subject = learner(copy.deepcopy(model), seed=seed, optimizer=lambda p: SGD(p, lr=1.0))
        subject.updates = updates
        subject.learn(x, y)
        return next(subject.model.parameters()).detach().clone()

    steps = [first_step(seed, updates) for seed in range(3) for updates in range(3)]
    assert len({tuple(step.flatten().tolist()) for step in steps}) > 4


def test_a_schedule_sets_the_rate_of_each_update() -> None:
    schedule = cosine(0.5, num_steps=4)
    subject = learner(lr=schedule)
    rates = [subject.learn(x, y).lr for x, y in events(4)]
    assert rates == [schedule(update) for update in range(4)]


def test_a_number_is_the_rate_of_each_update() -> None:
    subject = learner(lr=0.03)
    for event in events(3):
        subject.learn(*event)
    assert subject.optimizer.param_groups[0]["lr"] == 0.03


def test_rates_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="the learning rate is -1"):
        learner(lr=-1)
    subject = learner(lr=lambda update: -1.0 if update else 0.1)
    first, second = events(2)
    subject.learn(*first)
    before = [p.clone() for p in subject.model.parameters()]
    with pytest.raises(ValueError, match=r"for update 1 is -1\.0"):
        subject.learn(*second)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))


def test_an_optimizer_of_another_network_is_refused() -> None:
    with pytest.raises(EditError, match="none of this network's parameters"):
        OnlineLearner(network(), SGD(network().parameters(), lr=0.1))


def test_losses_by_name_are_those_of_tasks() -> None:
    model = nn.Linear(4, 1)
    subject = OnlineLearner(model, SGD(model.parameters(), lr=0.05), loss="mse")
    losses = [subject.learn(x, [float(x.sum())]).loss for x, _ in events(300)]
    assert np.mean(losses[-50:]) < 0.01 * np.mean(losses[:50])


class Halving:
    """A controller that halves the rate for each event with a loss above 1."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        del model
        self.optimizer, self.num_halved = optimizer, 0

    def observe(self, loss: float) -> None:
        if loss > 1:
            self.num_halved += 1
            self.optimizer.param_groups[0]["lr"] /= 2

    def detach(self) -> None:
        pass

    def state_dict(self) -> dict[str, int]:
        return {"num_halved": self.num_halved}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_halved = state["num_halved"]


def halved(**settings: Any) -> OnlineLearner:
    path = "tests.online.test_online_learner:Halving"
    return learner(optimizer=lambda p: SGD(p, lr=0.5), lr=path, **settings)


def test_a_controller_sees_the_losses_and_is_restored() -> None:
    subject = halved()
    results = [subject.learn(x, y) for x, y in events(30)]
    above = np.cumsum([result.loss > 1 for result in results])
    assert 0 < above[-1] < 30
    assert [result.lr for result in results] == [0.5 * 0.5**n for n in above]
    restored = halved()
    restored.load_state_dict(subject.state_dict())
    restored.update(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
    assert restored.optimizer.param_groups[0]["lr"] == 0.5 * 0.5 ** above[-1]
    assert restored.state_dict()["rates"]["controller"] == {"num_halved": above[-1]}
    with pytest.raises(
        CheckpointError, match="the rate controller is none in the learner but Halving"
    ):
        learner().load_state_dict(subject.state_dict())


def test_a_boost_multiplies_what_a_controller_sets_and_ends() -> None:
    subject = halved()
    subject.rates.observe(0.0)
    rates = []
    for boost, loss in ((1.0, 0.0), (4.0, 2.0), (4.0, 0.0), (1.0, 0.0)):
        subject.rates.boost = boost
        subject.rates.set(0)
        rates.append(subject.optimizer.param_groups[0]["lr"])
        subject.rates.observe(loss)
    assert rates == [0.5, 2.0, 1.0, 0.25]


@pytest.mark.parametrize(
    "lr", ["plateau", {"name": "hypergradient", "hyper_lr": 0.02, "multiplicative": True}]
)
def test_built_in_controllers_go_on_from_a_snapshot(lr: Any, tmp_path: Path) -> None:
    def make() -> OnlineLearner:
        return learner(optimizer=lambda p: torch.optim.Adam(p, lr=0.05), lr=lr)

    subject, restored = make(), make()
    before = [subject.learn(x, y).lr for x, y in events(40)]
    assert len(set(before)) > 1
    save(tmp_path / "learner", subject)
    load(tmp_path / "learner", restored)
    for x, y in events(20):
        assert restored.learn(x, y).lr == subject.learn(x, y).lr
    assert state_bytes(restored, tmp_path) == state_bytes(subject, tmp_path)


def test_without_a_schedule_the_rate_stays_the_users() -> None:
    subject = learner()
    subject.optimizer.param_groups[0]["lr"] = 0.02
    assert subject.learn(*events(1)[0]).lr == 0.02


def test_targets_may_be_numbers() -> None:
    model = nn.Linear(4, 1)
    subject = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), loss=F.mse_loss)
    losses = [subject.learn(x, [float(x.sum())]).loss for x, _ in events(300)]
    assert np.mean(losses[-50:]) < 0.01 * np.mean(losses[:50])
    x, y = torch.ones(3, 4), torch.tensor([[4.0], [0.0], [math.nan]])
    result = subject.learn(x, y)
    assert result.rows == (0, 1)
    assert result.errors[1] == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize("kind", ["loss", "detector", "reactions"])
def test_unknown_names_are_refused(kind: str) -> None:
    settings: dict[str, Any] = {kind: "nothing_like_it"}
    with pytest.raises(UnknownNameError, match="'nothing_like_it'"):
        learner(None, **settings)


def test_a_frozen_copy_does_not_follow() -> None:
    subject = learner()
    x, y = events(1)[0]
    before = subject.predict(x)
    frozen = subject.freeze()
    subject.learn(x, y)
    assert torch.equal(frozen.predict(x), before)
    assert frozen.events == 0
    assert subject.freeze().events == 1
    assert torch.equal(subject.freeze().predict(x), subject.predict(x))
