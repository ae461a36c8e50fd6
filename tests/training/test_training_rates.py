"""Adaptive rates against update rules worked out by hand."""

import copy
import doctest
import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dynopt_ray.errors import DivergedError, EditError
from dynopt_ray.structure import Grow, Mask, Shrink, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import Cocob, Hypergradient, Plateau, PopulationBasedRate, find_rate


def weight(value: float = 0.5) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def stepped(optimizer: Optimizer, parameter: nn.Parameter, gradients: list[float]) -> list[float]:
    values = []
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        values.append(parameter.item())
    return values


def test_cocob_is_the_papers_rule_step_by_step() -> None:
    # L G R θ: 2 2 0 -2, then 2 3 0 -1, then 4 7 0.02 -5; 100 L is above G + L each time.
    expected = [
        0.5 - 2 / (2 * 200) * (2 + 0),
        0.5 - 1 / (2 * 200) * (2 + 0),
        0.5 - 5 / (4 * 400) * (4 + 0.02),
    ]
    parameter = weight()
    assert stepped(Cocob([parameter]), parameter, [2.0, -1.0, 4.0]) == pytest.approx(expected)
    parameter = weight()
    # With α = 1, G + L counts: 4 and 5 and 11.
    small = Cocob([parameter], alpha=1.0)
    first = 0.5 - 2 / (2 * 4) * 2
    reward = max((first - 0.5) * 1, 0)
    second = 0.5 - 1 / (2 * 5) * (2 + reward)
    assert stepped(small, parameter, [2.0, -1.0]) == pytest.approx([first, second])


def test_cocob_leaves_weights_without_gradients_and_follows_edits() -> None:
    parameter = weight()
    assert stepped(Cocob([parameter]), parameter, [0.0, 0.0]) == [0.5, 0.5]
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randn(64, 2)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = Cocob(model.parameters())

    def train(num_steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss.item()

    train(20)
    graph = trace(model, x)
    before = model(x).detach()
    graph.apply([Grow("0", units=3)], optimizer=optimizer)
    torch.testing.assert_close(model(x), before)
    after = train(1)
    assert train(100) < after  # and the new units' bets start at their own weights
    graph.apply([Shrink("0", remove=[0, 9])], optimizer=optimizer, compensate=x)
    after = train(1)
    assert train(50) < after


def test_hypergradient_of_sgd_is_the_papers_rule() -> None:
    parameter = weight(1.0)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    hyper = Hypergradient(optimizer, hyper_lr=0.01)
    rates, value, rate, last = [], 1.0, 0.1, 0.0
    for gradient in (2.0, 3.0, -1.0):
        rate += 0.01 * gradient * last
        value, last = value - rate * gradient, gradient
        (got,) = stepped(optimizer, parameter, [gradient])
        assert got == pytest.approx(value)
        rates.append(hyper.lr)
    assert rates == pytest.approx([0.1, 0.16, 0.13])


def test_hypergradient_of_adam_is_the_papers_rule() -> None:
    parameter, reference = weight(1.0), weight(1.0)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    plain = torch.optim.Adam([reference], lr=1.0)  # whose steps are m̂ / (√v̂ + ε)
    hyper = Hypergradient(optimizer, hyper_lr=0.01)
    rate, direction, value = 0.1, 0.0, 1.0
    for gradient in (2.0, 0.5, -1.0):
        rate += 0.01 * gradient * direction
        before = reference.item()
        direction = before - stepped(plain, reference, [gradient])[0]
        value -= rate * direction
        assert stepped(optimizer, parameter, [gradient]) == pytest.approx([value])
        assert hyper.lr == pytest.approx(rate)


def test_multiplicative_hypergradient_moves_by_the_cosine() -> None:
    parameter = weight(1.0)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    hyper = Hypergradient(optimizer, hyper_lr=0.02, multiplicative=True)
    stepped(optimizer, parameter, [2.0, 3.0])
    assert hyper.lr == pytest.approx(0.1 * 1.02)
    stepped(optimizer, parameter, [-1.0])
    assert hyper.lr == pytest.approx(0.1 * 1.02 * 0.98)
    hyper.detach()
    stepped(optimizer, parameter, [5.0])
    assert hyper.lr == pytest.approx(0.1 * 1.02 * 0.98)


def test_hypergradient_goes_on_from_its_state_and_after_an_edit() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 5), torch.randn(32, 2)

    def make() -> tuple[nn.Module, Optimizer, Hypergradient]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return model, optimizer, Hypergradient(optimizer, hyper_lr=1e-3)

    def train(model: nn.Module, optimizer: Optimizer, num_steps: int) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    model, optimizer, hyper = make()
    train(model, optimizer, 5)
    other, again, later = make()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    later.load_state_dict(hyper.state_dict())
    train(model, optimizer, 3)
    train(other, again, 3)
    assert hyper.lr == later.lr
    graph = trace(model, x)
    graph.apply([Grow("0", units=2)], optimizer=optimizer)
    before = hyper.lr
    train(model, optimizer, 2)
    assert math.isfinite(hyper.lr)
    assert hyper.lr != before


def test_plateau_cuts_and_goes_back() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9)
    plateau = Plateau(model, optimizer, patience=2, factor=0.25, min_lr=0.1)

    def disturb() -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()

    disturb()
    assert not plateau.observe(1.0)
    best = copy.deepcopy(model.state_dict())
    momentum = optimizer.state[model.weight]["momentum_buffer"].clone()
    for loss, cut in ((0.9999, False), (math.nan, True)):
        disturb()
        assert plateau.observe(loss) is cut
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], momentum)
    assert optimizer.param_groups[0]["lr"] == 0.2
    for _ in range(2):
        plateau.observe(2.0)
    assert optimizer.param_groups[0]["lr"] == 0.1  # no lower


def test_plateau_does_not_bring_masked_weights_back_nor_raise_a_low_rate() -> None:
    model = nn.Linear(4, 2)
    graph = trace(model, torch.zeros(2, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = Plateau(model, optimizer, patience=1, min_lr=0.2)
    plateau.observe(1.0)
    keep = torch.arange(8).reshape(2, 4) % 2 > 0
    graph.apply(Mask("weight", keep=keep), optimizer=optimizer)
    assert not plateau.observe(2.0)  # the first of a new search
    assert plateau.observe(3.0)
    assert not model.weight[~keep].any()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_hypergradient_rises_again_after_an_overshoot() -> None:
    parameter = weight(1.0)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    hyper = Hypergradient(optimizer, hyper_lr=0.1)
    stepped(optimizer, parameter, [2.0, -5.0])
    assert hyper.lr == pytest.approx(1e-4)
    stepped(optimizer, parameter, [-5.0])
    assert hyper.lr == pytest.approx(2.5, rel=0.01)


def test_plateau_starts_anew_after_an_edit_and_from_its_state() -> None:
    x = torch.randn(8, 5)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    plateau = Plateau(model, optimizer, patience=1)
    plateau.observe(0.1)
    other = Plateau(model, optimizer, patience=1)
    other.load_state_dict(plateau.state_dict())
    assert other.best_loss == 0.1
    trace(model, x).apply([Grow("0", units=2)], optimizer=optimizer)
    grown = copy.deepcopy(model.state_dict())
    assert not plateau.observe(0.5)
    assert plateau.best_loss == 0.5
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    assert plateau.observe(0.6)
    assert all(torch.equal(value, grown[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, o: Plateau(m, o, factor=1.0), "factor is 1.0"),
        (lambda m, o: Plateau(m, o, patience=0), "patience is 0"),
        (lambda m, o: Plateau(m, o, min_gain=-1.0), "min_gain is -1.0; it must be at least 0"),
        (lambda m, o: Plateau(m, o, min_lr=math.inf), "min_lr is inf; it must be finite"),
        (lambda _, o: Hypergradient(o, hyper_lr=0.0), "hyper_lr is 0.0"),
        (
            lambda m, _: Hypergradient(SGD(m.parameters(), maximize=True), hyper_lr=0.1),
            "minimise the negated objective",
        ),
        (lambda _, o: Hypergradient(o, hyper_lr=0.1, min_lr=-1), "min_lr is -1"),
        (lambda m, _: Cocob(m.parameters(), alpha=0), "alpha is 0"),
        (lambda m, _: Cocob(m.parameters(), lr=-1), "lr is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    make: Callable[[nn.Module, Optimizer], object], message: str
) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=message):
        make(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_find_rate_suggests_one_that_trains_and_changes_nothing() -> None:
    task = load_task("digits-mlp")
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.123, momentum=0.9)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    found = find_rate(model, task, optimizer, num_steps=80)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert optimizer.param_groups[0]["lr"] == 0.123
    assert "initial_lr" not in optimizer.param_groups[0]
    assert not optimizer.state
    assert torch.equal(random, torch.get_rng_state())
    assert 1e-3 < found.suggestion <= found.largest < 10
    assert found.history["lr"].is_monotonic_increasing
    assert list(found.history) == ["lr", "loss", "smooth_loss"]
    assert found.history["loss"].iloc[0] == pytest.approx(found.history["loss"].iloc[1], rel=1e-3)
    losses = {}
    for rate in (found.suggestion, found.suggestion / 1000):
        other = task.new_model(seed=0)
        sgd = torch.optim.SGD(other.parameters(), lr=rate, momentum=0.9)
        task.train_steps(other, sgd, 100, generator=torch.Generator().manual_seed(0))
        losses[rate] = task.evaluate(other).loss
    assert losses[found.suggestion] < losses[found.suggestion / 1000] / 2
    with pytest.raises(ValueError, match="the second must be higher"):
        find_rate(model, task, optimizer, lowest=1.0, highest=0.1)
    with pytest.raises(TypeError, match="lowest is 'a'"):
        find_rate(model, task, optimizer, lowest="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="find_rate: task is None"):
        find_rate(model, None, optimizer)  # type: ignore[arg-type]
    with pytest.raises(DivergedError, match="only rises, even at the rate 100000; give a smaller"):
        find_rate(model, task, optimizer, lowest=1e5, highest=1e6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "options"), [("mlp", {}), ("cnn", {"channels": [8, 16]})])
def test_find_rate_reads_no_noise_from_a_trained_network(name: str, options: Any) -> None:
    task = load_task(f"digits-{name}", options)
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    task.train_steps(model, optimizer, 150, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    for seed in range(3):
        found = find_rate(model, task, optimizer, seed=seed)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        # Six decades are tried; the middle ones are those that training takes.
        assert 1e-3 < found.suggestion < 1


@pytest.mark.parametrize("shift", [-0.3, -5.0])
def test_find_rate_does_not_mind_where_zero_is(shift: float) -> None:
    base = load_task("digits-mlp")

    def shifted(output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(output, targets) + shift

    task = Task.from_arrays(
        model=base.model,
        train=base.arrays("train"),
        validation=base.arrays("validation"),
        loss=shifted,
    )
    found = []
    for one in (base, task):
        model = one.new_model(seed=0)
        found.append(find_rate(trace(model, one.example_inputs()), one, SGD(model.parameters())))
    assert found[0].suggestion / 4 < found[1].suggestion < found[0].suggestion * 4


def test_find_rate_refuses_what_cannot_train() -> None:
    task = load_task("digits-mlp")
    model = task.new_model(seed=0)
    optimizer = SGD(model.parameters())
    with pytest.raises(TypeError, match="find_rate: optimizer is None"):
        find_rate(model, task, None)  # type: ignore[arg-type]
    with pytest.raises(EditError, match="LBFGS"):
        find_rate(model, task, torch.optim.LBFGS(model.parameters()))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(math.nan)
    with pytest.raises(DivergedError, match="the loss is nan before any step"):
        find_rate(model, task, optimizer)
    with pytest.raises(EditError, match="is frozen, so there is nothing to train"):
        find_rate(model.requires_grad_(False), task, optimizer)


def test_find_rate_refuses_where_nothing_is_left_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=generator)
    arrays = (x, x[:, :1] + torch.randn(600, 1, generator=generator))
    task = Task.from_arrays(
        model=lambda: nn.Linear(4, 1), train=arrays, validation=arrays, loss="mse", batch_size=600
    )
    model = task.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task.train_steps(model, optimizer, 500)
    with pytest.raises(DivergedError, match=r"falls by less than 1%.*learned the task already"):
        find_rate(model, task, optimizer, num_steps=20)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_plateau_takes_numbers_only() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="min_lr is 'a'; it must be a number"):
        Plateau(model, torch.optim.SGD(model.parameters()), min_lr="a")  # type: ignore[arg-type]


class Counted(nn.Linear):
    """Keeps something in its state that is no tensor."""

    seen = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_states_that_are_no_tensors_go_back_and_are_passed_on() -> None:
    models = [Counted(2, 1) for _ in range(2)]
    optimizers: list[Optimizer] = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    plateau = Plateau(models[0], optimizers[0], patience=1)
    models[0].seen = 3
    plateau.observe(1.0)
    models[0].seen = 5
    assert plateau.observe(2.0)
    assert models[0].seen == 3
    assert PopulationBasedRate(models, optimizers).observe([1.0, 2.0]) == [0, 0]
    assert models[1].seen == 3


@pytest.mark.parametrize("name", ["plateau", "population_based"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dynopt_ray.training.rates.{name}"))
    assert results.attempted
    assert not results.failed


def test_rates_are_of_tensors_where_the_optimizer_keeps_tensors() -> None:
    model = nn.Linear(2, 1)
    rate: Tensor = torch.tensor(0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, capturable=False, foreach=False)
    plateau = Plateau(model, optimizer, patience=1)
    plateau.observe(1.0)
    assert plateau.observe(2.0)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.4)
    hyper = Hypergradient(optimizer, hyper_lr=0.1, multiplicative=True)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert hyper.lr == pytest.approx(0.44, rel=0.01)
    assert optimizer.param_groups[0]["lr"] is rate
