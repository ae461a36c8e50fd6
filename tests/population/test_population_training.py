"""A stack of networks learns what each of them would learn alone."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from dynopt_ray.errors import DataError, DivergedError, EditError
from dynopt_ray.population import Population, batch_rows, evaluate, mlp_layout, train_steps
from dynopt_ray.population.steps import forward
from dynopt_ray.structure import Mask, trace
from dynopt_ray.tasks import Task, batch_indices
from dynopt_ray.tasks.builtin.models import mlp

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(61, 6, generator=GENERATOR)
Y = torch.randint(4, (61,), generator=GENERATOR)
WIDTHS = ((5, 7), (3, 9), (8, 1))


def task_of(widths: tuple[int, ...] = WIDTHS[0]) -> Task:
    return Task.from_arrays(
        model=lambda: mlp(6, widths, 4), train=(X, Y), validation=(X[:23], Y[:23])
    )


def networks() -> list[nn.Module]:
    return [task_of(widths).new_model(seed=i) for i, widths in enumerate(WIDTHS)]


def stacked(models: list[nn.Module]) -> Population:
    population = Population(models[0], len(models))
    for member, model in enumerate(models):
        population.load(member, model)
    return population


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + i) for i in range(len(WIDTHS))]


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stacked_equals_looped(momentum: float) -> None:
    models, population = networks(), stacked(networks())
    rows = batch_rows(len(Y), 16, 40, generators())
    losses = train_steps(population, X, Y, rows, learning_rate=0.1, momentum=momentum)
    for member, (model, generator) in enumerate(zip(models, generators(), strict=True)):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
        stats = task_of().train_steps(model, optimizer, 40, batch_size=16, generator=generator)
        assert float(losses[member]) == pytest.approx(stats.mean_loss, abs=1e-6)
        assert difference(model, population.to_module(member)) < 2e-6


def test_the_hand_written_step_is_autograds() -> None:
    population = stacked(networks())
    parameters = [*population.weights, *population.biases]
    leaves = [p.clone().requires_grad_() for p in parameters]
    rows = batch_rows(len(Y), 16, 1, generators())
    layers = len(population.weights)
    values = X[rows[0]]
    for layer in range(layers):
        bias = leaves[layers + layer][:, None]
        values = torch.baddbmm(bias, values, leaves[layer].transpose(1, 2))
        values = values.relu() if layer < layers - 1 else values
    per_member = F.cross_entropy(values.flatten(0, 1), Y[rows[0]].flatten(), reduction="none")
    (per_member.reshape(len(WIDTHS), -1).mean(1)).sum().backward()  # type: ignore[no-untyped-call]
    train_steps(population, X, Y, rows, learning_rate=1.0, momentum=0.9)
    for leaf, parameter in zip(leaves, [*population.weights, *population.biases], strict=True):
        assert leaf.grad is not None
        assert float((leaf.detach() - leaf.grad - parameter).abs().max()) < 1e-6


def test_absent_units_stay_exactly_zero() -> None:
    population = stacked(networks())
    rows = batch_rows(len(Y), 16, 30, generators())
    train_steps(population, X, Y, rows, learning_rate=0.1, momentum=0.9)
    for layer in range(population.num_layers):
        outputs, inputs = population.sizes(layer)
        for tensor in population.tensors(layer):
            for member in range(len(population)):
                assert not tensor[member, outputs[member] :].any()
                if tensor.ndim == 3:
                    assert not tensor[member, :, inputs[member] :].any()


def test_members_may_have_rates_of_their_own() -> None:
    population = stacked(networks())
    rows = batch_rows(len(Y), 16, 5, generators())
    rates = torch.tensor([0.1, 0.0, 0.05])
    train_steps(population, X, Y, rows, learning_rate=rates, momentum=0.9)
    for member, rate in enumerate(rates.tolist()):
        alike = stacked(networks())
        train_steps(alike, X, Y, rows, learning_rate=rate, momentum=0.9)
        assert difference(alike.to_module(member), population.to_module(member)) == 0


def test_a_rate_per_step_is_a_schedule() -> None:
    rates = torch.linspace(0.1, 0.0, 6)[:, None]
    at_once, in_steps = stacked(networks()), stacked(networks())
    rows = batch_rows(len(Y), 16, 6, generators())
    train_steps(at_once, X, Y, rows, learning_rate=rates, momentum=0.9)
    for step in range(6):
        rate = float(rates[step])
        train_steps(in_steps, X, Y, rows[step : step + 1], learning_rate=rate, momentum=0.9)
    assert all(map(torch.equal, at_once.weights, in_steps.weights))


def test_masked_weights_stay_zero_and_learn_as_alone() -> None:
    models = networks()
    keep = torch.rand(models[1][2].weight.shape, generator=GENERATOR) > 0.5  # type: ignore[index]
    optimizer = SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    trace(models[1], X[:2]).apply([Mask("2.weight", keep=keep)], optimizer=optimizer)
    population = stacked(models)
    rows = batch_rows(len(Y), 16, 30, generators())
    train_steps(population, X, Y, rows, learning_rate=0.1, momentum=0.9)
    task_of().train_steps(models[1], optimizer, 30, batch_size=16, generator=generators()[1])
    trained = population.to_module(1)
    assert not trained.get_parameter("2.weight")[~keep].any()
    assert difference(models[1], trained) < 2e-6


def test_evaluating_all_equals_evaluating_each() -> None:
    models = networks()
    found = evaluate(stacked(models), *task_of().arrays("validation"))
    for member, model in enumerate(models):
        metrics = task_of().evaluate(model)
        assert float(found.loss[member]) == pytest.approx(metrics.loss, abs=1e-6)
        assert float(found.accuracy[member]) == pytest.approx(metrics.metric, abs=1e-12)
        assert metrics.confidence is not None
        assert float(found.confidence[member]) == pytest.approx(metrics.confidence, abs=1e-6)
        assert float(found.smooth[member]) == pytest.approx(metrics.smooth, abs=1e-6)


@pytest.mark.parametrize("rows_at_once", [1, 7, 22, 23, 24])
def test_evaluating_in_pieces_equals_evaluating_at_once(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    population, (x, y) = stacked(networks()), task_of().arrays("validation")
    wanted = evaluate(population, x, y)
    # The widest layer of the three members has nine units.
    monkeypatch.setattr("dynopt_ray.population.evaluation._VALUES_AT_ONCE", rows_at_once * 9 * 3)
    found = evaluate(population, x, y)
    torch.testing.assert_close(found.loss, wanted.loss)
    torch.testing.assert_close(found.confidence, wanted.confidence)
    assert torch.equal(found.accuracy, wanted.accuracy)


@pytest.mark.parametrize(
    ("rows", "size", "steps"), [(61, 16, 9), (61, 100, 3), (7, 7, 4), (5, 2, 1)]
)
def test_batches_are_those_of_the_task(rows: int, size: int, steps: int) -> None:
    found = batch_rows(rows, size, steps, generators())
    for member, generator in enumerate(generators()):
        wanted = list(islice(batch_indices(rows, size, generator), steps))
        assert [batch.tolist() for batch in found[:, member]] == [b.tolist() for b in wanted]


def test_batches_leave_generators_where_the_task_does() -> None:
    ours, theirs = generators(), generators()
    batch_rows(61, 16, 9, ours)
    for generator in theirs:
        list(islice(batch_indices(61, 16, generator), 9))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(ours, theirs, strict=True))


def test_divergence_names_the_member() -> None:
    population = stacked(networks())
    population.weights[0][1, 0, 0] = torch.nan
    with pytest.raises(DivergedError, match="member 1"):
        evaluate(population, X, Y)
    rows = batch_rows(len(Y), 16, 1, generators())
    with pytest.raises(DivergedError, match="member 1"):
        train_steps(population, X, Y, rows, learning_rate=0.1, momentum=0.9)


def test_a_member_can_be_replaced_while_others_go_on() -> None:
    pool, population = stacked(networks()), stacked(networks())
    rows = batch_rows(len(Y), 16, 10, generators())
    train_steps(population, X, Y, rows, learning_rate=0.1, momentum=0.9)
    other = population.to_module(0)
    population.copy_from([1, 2], pool, [2, 0])
    assert population.widths.tolist() == [[5, 7], [8, 1], [5, 7]]
    assert difference(population.to_module(0), other) == 0
    assert difference(population.to_module(1), networks()[2]) == 0
    assert not population.weight_momenta[0][1].any()


def test_momentum_and_masks_come_along() -> None:
    model = networks()[0]
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep = torch.rand(model[0].weight.shape, generator=GENERATOR) > 0.3  # type: ignore[index]
    trace(model, X[:2]).apply([Mask("0.weight", keep=keep)], optimizer=optimizer)
    task_of().train_steps(model, optimizer, 10, batch_size=16, generator=generators()[0])
    pool = Population(model, 1)
    pool.load(0, model, optimizer)
    population = stacked(networks())
    population.copy_from([2], pool, [0])
    generator = generators()[2]
    rows = batch_rows(len(Y), 16, 10, [generators()[0], generators()[1], generator])
    train_steps(population, X, Y, rows, learning_rate=0.1, momentum=0.9)
    task_of().train_steps(model, optimizer, 10, batch_size=16, generator=generators()[2])
    assert difference(model, population.to_module(2)) < 2e-6


def test_a_mask_goes_with_the_member_it_was_on() -> None:
    population, plain = stacked(networks()), stacked(networks())
    population.set_mask(1, 0, torch.zeros(7, 5, dtype=torch.bool))
    population.copy_from([0], plain, [2])
    assert population.masks[1] is not None
    assert population.masks[1].all()


def test_to_module_is_a_copy() -> None:
    population = stacked(networks())
    model = population.to_module(1)
    output: Tensor = model(X)
    stack = forward(population, X[None])[1][1].T
    assert float((output - stack).detach().abs().max()) < 1e-6
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index]
    assert population.weights[0][1].any()


def test_what_cannot_be_stacked_is_refused() -> None:
    others: list[nn.Module] = [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    ]
    for model in others:
        assert mlp_layout(model) is None
        with pytest.raises(EditError, match="cannot be stacked"):
            Population(model, 2)
    with pytest.raises(ValueError, match="num_members is 0"):
        Population(networks()[0], 0)
    with pytest.raises(EditError, match="only widths may differ"):
        Population(networks()[0], 1).load(0, mlp(6, [3], 4))
    adam = torch.optim.Adam(networks()[0].parameters())
    with pytest.raises(EditError, match="Adam"):
        Population(networks()[0], 1).load(0, networks()[0], adam)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:, None], r"y is torch.int64 of shape \(61, 1\); it must hold one int64 label"),
        (X, Y[:40], r"shape \(40,\)"),
        (X, Y.float(), "y is torch.float32"),
        (X, Y + 10, "y holds label 1.; the networks know the classes 0 to"),
        (X, Y - 10, "y holds label -10"),
        (X[:, :5], Y, r"x is torch.float32 of shape \(61, 5\); the networks need floats of shape"),
        (X[:, 0], Y, r"x is torch.float32 of shape \(61,\)"),
        (X.long(), Y, "x is torch.int64"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    population = Population(mlp(6, [5], 3), 2)
    before = [weight.clone() for weight in population.weights]
    rows = batch_rows(40, 8, 2, [torch.Generator(), torch.Generator()])
    with pytest.raises(DataError, match=message):
        train_steps(population, x, y, rows, learning_rate=0.1, momentum=0.9)
    with pytest.raises(DataError, match=message):
        evaluate(population, x, y)
    assert all(map(torch.equal, population.weights, before))
