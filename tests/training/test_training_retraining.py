"""Retraining: the best of the states on the way, early stops, and what a teacher adds."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import constant, linear, sequence, to_torch
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Budget, Distillation, Plateau, Retraining, grow, prune
from dynopt_ray.training.rates.hypergradients import hypergradient


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits-mlp")


def trained(task: Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    task.train_steps(model, optimizer, 150, generator=torch.Generator().manual_seed(0))
    return model, optimizer


def retrain(task: Task, retraining: Retraining) -> tuple[nn.Module, Any, Any]:
    model, optimizer = trained(task)
    stats = retraining(task, model, optimizer, generator=torch.Generator().manual_seed(1))
    return model, optimizer, stats


def same(one: nn.Module, other: nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(value, others[name]) for name, value in one.state_dict().items())


def test_the_best_of_the_states_on_the_way_remains(task: Task) -> None:
    # A rate that rises to far too much: the end is worse than what was before it.
    rising = linear(0.01, num_steps=60, final=3.0)
    whole, _, _ = retrain(task, Retraining(60, rising))
    best, optimizer, stats = retrain(task, Retraining(60, rising, num_checks=6))
    assert stats.num_steps == 60
    assert task.evaluate(best).smooth > task.evaluate(whole).smooth + 0.1
    assert optimizer.param_groups[0]["lr"] == 0.05
    # It is one of the states, bit for bit: that after some whole number of tenths.
    assert any(same(best, _part(task, rising, num_steps)) for num_steps in range(10, 61, 10))


def _part(task: Task, schedule: Callable[[int], float], num_steps: int) -> nn.Module:
    """The network after the first steps of a schedule, trained ten steps at a time."""
    model, optimizer = trained(task)
    scheduler, generator = to_torch(schedule, optimizer), torch.Generator().manual_seed(1)
    for _ in range(num_steps // 10):
        task.train_steps(model, optimizer, 10, generator=generator, schedule=scheduler)
    return model


def test_training_stops_when_it_no_longer_gets_better(task: Task) -> None:
    hopeless = Retraining(60, constant(3.0), num_checks=12, patience=2)
    _, _, stats = retrain(task, hopeless)
    assert stats.num_steps < 60


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Retraining(5, num_checks=6), ValueError, "6 checks in 5 steps"),
        (lambda: Retraining(5, num_checks=0), ValueError, "num_checks is 0"),
        (lambda: Retraining(5, patience=1), ValueError, "give more of them"),
        (lambda: Retraining(5, num_checks=3, patience=0), ValueError, "patience is 0"),
        (lambda: Retraining(5, restart=1), TypeError, "restart is 1"),  # type: ignore
        (lambda: Retraining(5, distillation=0.5), TypeError, "pass Distillation"),  # type: ignore
        (lambda: Distillation(weight=0.0), ValueError, "weight is 0.0"),
        (lambda: Distillation(temperature=-1.0), ValueError, "temperature is -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_distillation_is_hintons_loss() -> None:
    teacher = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[2.0], [0.0]]))
    added = Distillation(weight=0.5, temperature=2.0).from_teacher(teacher, outputs="classes")
    teacher.weight.detach().zero_()  # the teacher is as it was
    x, output = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    expected = 0.0
    for row, scores in zip((1.0, 3.0), output, strict=True):
        p = torch.tensor([2.0 * row / 2, 0.0]).softmax(0)
        q = (scores / 2).softmax(0)
        expected += float((p * (p.log() - q.log())).sum()) / 2
    assert float(added(x, output)) == pytest.approx(0.5 * 4 * expected, rel=1e-5)
    numbers = Distillation(weight=3.0).from_teacher(teacher, outputs="numbers")
    assert float(numbers(x, output)) == pytest.approx(3.0 * float(output.square().mean()))


def test_one_logit_is_distilled_as_two_classes() -> None:
    logit = nn.Linear(4, 1)
    pair = nn.Linear(4, 2)
    with torch.no_grad():
        pair.weight.copy_(torch.cat([torch.zeros_like(logit.weight), logit.weight]))
        pair.bias.copy_(torch.cat([torch.zeros_like(logit.bias), logit.bias]))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    z = torch.randn(8, 1, generator=torch.Generator().manual_seed(1))
    of_logits = Distillation().from_teacher(logit, outputs="logits")(x, z)
    of_pairs = Distillation().from_teacher(pair, outputs="classes")(x, torch.cat([0 * z, z], dim=1))
    assert of_logits.item() == pytest.approx(of_pairs.item(), rel=1e-5)
    assert of_logits > 0.01
    flat = Distillation().from_teacher(nn.Sequential(logit, nn.Flatten(0)), outputs="logits")
    two = Distillation().from_teacher(nn.Linear(4, 2), outputs="logits")  # of a label each
    assert two(x, torch.cat([z, z], dim=1) + 10) > two(x, torch.cat([z, z], dim=1)) + 1
    assert flat(x, z[:, 0]).item() == pytest.approx(of_pairs.item(), rel=1e-5)


def test_a_student_that_has_only_its_teacher_learns_from_it(task: Task) -> None:
    teacher, _ = trained(task)
    x, y = task.arrays("train")
    wrong = Task.from_arrays(  # labels that tell nothing
        model=task.model,
        train=(x, torch.zeros_like(y)),
        validation=task.arrays("validation"),
    )
    student = task.new_model(seed=3)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    added = Distillation(weight=100.0).from_teacher(teacher, outputs="classes")
    retraining = Retraining(200)
    retraining(
        wrong, student, optimizer, generator=torch.Generator().manual_seed(0), added_loss=added
    )
    assert task.evaluate(student).metric > 0.85


def test_prune_learns_from_the_network_before(task: Task) -> None:
    outcomes: list[Tensor] = []
    for distillation in (None, Distillation()):
        model, optimizer = trained(task)
        before = copy.deepcopy(model)
        result = prune(
            model,
            task,
            target=Budget(flops=0.15),
            # What goes on is kept, so that the two differ by what they learned alone.
            retrain=Retraining(100, constant(0.02), distillation=distillation, restart=False),
            optimizer=optimizer,
        )
        assert result.after.validation.metric > 0.9
        x, _ = task.arrays("validation")
        with torch.no_grad():
            kl = before(x).softmax(1) * (before(x).log_softmax(1) - model(x).log_softmax(1))
        outcomes.append(kl.sum(1).mean())
    assert outcomes[1] < outcomes[0]  # nearer to what it was


def test_a_schedule_goes_on_over_all_rounds_where_it_does_not_restart(task: Task) -> None:
    seen: dict[bool, list[float]] = {True: [], False: []}
    for restart, rates in seen.items():
        model, optimizer = trained(task)

        def note(optimizer: torch.optim.Optimizer, *_: Any, rates: list[float] = rates) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

        optimizer.register_step_pre_hook(note)
        retraining = Retraining(4, linear(0.12, num_steps=12, final=0.0), restart=restart)
        prune(
            model, task, target=Budget(flops=0.5), rounds=3, retrain=retraining, optimizer=optimizer
        )
    assert seen[True] == pytest.approx([0.12, 0.11, 0.10, 0.09] * 3)
    assert seen[False] == pytest.approx([0.12 - 0.01 * step for step in range(12)])


def test_what_goes_on_is_kept_even_where_a_part_of_it_does_harm(task: Task) -> None:
    """A rate that ruins the network in the first round and mends it in the second."""
    rate = sequence([constant(2.0), constant(0.02)], milestones=[30])
    kept = {}
    for restart in (True, False):
        model, optimizer = trained(task)
        retraining = Retraining(30, rate, restart=restart)
        result = prune(
            model, task, target=Budget(flops=0.7), rounds=2, retrain=retraining, optimizer=optimizer
        )
        kept[restart] = result.history["trained_kept"].tolist()[1:]
    assert kept == {True: [False, False], False: [True, True]}


def test_a_controller_sets_the_rate_and_lets_go_of_it(task: Task) -> None:
    rates: list[float] = []

    class Watching(Plateau):
        def observe(self, loss: float) -> bool:
            cut = super().observe(loss)
            rates.append(self.optimizer.param_groups[0]["lr"])
            return cut

    controller = partial(Watching, patience=1, min_gain=0.5, factor=0.1)  # halving is too much
    _, optimizer, stats = retrain(task, Retraining(40, num_checks=4, controller=controller))
    assert rates == pytest.approx([0.05, 0.005, 0.0005, 0.00005])
    assert stats.num_steps == 40
    assert optimizer.param_groups[0]["lr"] == 0.05
    hyper = partial(hypergradient, hyper_lr=0.02, multiplicative=True)
    model, optimizer, _ = retrain(task, Retraining(20, controller=hyper))
    assert not same(model, retrain(task, Retraining(20))[0])
    assert not optimizer._optimizer_step_pre_hooks
    assert optimizer.param_groups[0]["lr"] == 0.05
    with pytest.raises(ValueError, match="only one check, at the end; give more"):
        retrain(task, Retraining(20, controller=Plateau))
    with pytest.raises(TypeError, match="controller gave 5; it must return a RateController"):
        retrain(task, Retraining(20, controller=lambda *_: 5))  # type: ignore[arg-type]


def test_a_controller_beside_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="both would set the rate"):
        Retraining(10, constant(0.1), controller=Plateau)
    with pytest.raises(TypeError, match="controller is 'plateau'"):
        Retraining(10, controller="plateau")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "setting",
    [
        {"schedule": linear(0.003, final=0.0, num_steps=20)},
        {"controller": Plateau, "num_checks": 5},
        {"controller": partial(hypergradient, hyper_lr=0.01)},
    ],
)
def test_a_rate_that_is_a_tensor_stays_that_tensor(task: Task, setting: dict[str, Any]) -> None:
    lr, model = torch.tensor(0.003), task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    Retraining(20, **setting)(task, model, optimizer, generator=torch.Generator())
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.003)


def test_float16_trains_with_the_default_and_other_adams_are_told_why_not(task: Task) -> None:
    x, y = task.arrays("train")
    try:
        torch.set_default_dtype(torch.float16)
        half = Task.from_arrays(model=task.model, train=(x, y), validation=(x, y))
        model = half.new_model(seed=0)
        result = grow(model, half, target={"0": 80}, train=100, rounds=1)
        assert result.after.validation.metric > 0.5
        adam = torch.optim.Adam(model.parameters(), lr=1e-4)
        with pytest.raises(DivergedError, match=r"float16.*or give Adam eps=1e-4"):
            half.train_steps(model, adam, 100)
    finally:
        torch.set_default_dtype(torch.float32)
