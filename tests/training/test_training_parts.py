"""Training in parts: even, seeded, and of a population the best."""

import pytest
import torch

from dynopt_ray.errors import SpecError
from dynopt_ray.schedules import constant
from dynopt_ray.structure import Mask, mask_of, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training.optimizers import OPTIMIZERS, make_optimizer
from dynopt_ray.training.rates.config import Rate, make_rate
from dynopt_ray.training.retraining.measured_parts import TrainingInParts

POPULATION = {"name": "population", "initial": 0.1, "num_members": 3, "spread": 10.0, "seed": 4}


def test_training_in_parts_is_even_and_seeded(blobs: Task) -> None:
    def run() -> tuple[list[int], torch.Tensor]:
        model = blobs.new_model(seed=0)
        optimizer = make_optimizer("sgd", model, lr=0.1)
        parts = TrainingInParts(
            model, blobs, optimizer, Rate(0.1, constant(0.1)), num_steps=10, num_parts=4, seed=0
        )
        steps = [step for step, _ in parts]
        return steps, next(model.parameters()).detach().clone()

    steps, weights = run()
    assert steps == [2, 5, 8, 10]
    assert torch.equal(weights, run()[1])


def test_a_population_ends_as_its_best_member(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    rate = make_rate(POPULATION, num_steps=12)
    optimizer = make_optimizer("sgd", model, lr=rate.initial)
    parts = TrainingInParts(model, blobs, optimizer, rate, num_steps=12, num_parts=3, seed=0)
    figures = [figures for _, figures in parts]
    assert blobs.evaluate(model).loss == figures[-1]["validation_loss"]
    losses = []
    for lr in (0.01, 0.1, 1.0):
        alone = blobs.new_model(seed=0)
        sgd = make_optimizer("sgd", alone, lr=lr)
        blobs.train_steps(alone, sgd, 4, generator=torch.Generator().manual_seed(0))
        losses.append(blobs.evaluate(alone).loss)
    # Until they first take over from each other the members are trainings of their own.
    assert figures[0]["validation_loss"] == min(losses)
    assert figures[0]["lr"] == pytest.approx((0.01, 0.1, 1.0)[losses.index(min(losses))])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_trains_at_the_rate_given(blobs: Task, name: str) -> None:
    model = blobs.new_model(seed=0)
    optimizer = make_optimizer(name, model, lr=0.01)
    before = blobs.evaluate(model).loss
    list(TrainingInParts(model, blobs, optimizer, make_rate(0.01, 30), num_steps=30, num_parts=2,
                          seed=0))  # fmt: skip
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert blobs.evaluate(model).loss < before


def test_members_keep_masks(blobs: Task) -> None:
    graph = trace(blobs.new_model(seed=0), blobs.example_inputs())
    name, weight = next((n, p) for n, p in graph.model.named_parameters() if p.ndim > 1)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    graph.apply([Mask(name, keep=keep)])
    rate = make_rate(POPULATION, num_steps=4)
    optimizer = make_optimizer("sgd", graph.model, lr=rate.initial)
    list(TrainingInParts(graph.model, blobs, optimizer, rate, num_steps=4, num_parts=2, seed=0))
    weight = graph.model.get_parameter(name)
    assert torch.equal(weight != 0, keep)
    assert mask_of(weight) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_members": 1}, "lr 'population' refuses its arguments: population: num_members is 1"),
        ({"spread": 1.0}, "spread is 1.0; it must be > 1"),
        ({"share": 0.9}, "share is 0.9"),
        ({"members": 3}, "'population' has no argument 'members'. Did you mean 'num_members'?"),
    ],
)
def test_populations_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_rate({"name": "population", "initial": 0.1, **options}, num_steps=10)


def test_parts_that_were_trained_elsewhere_count(blobs: Task) -> None:
    def begun() -> TrainingInParts:
        model = blobs.new_model(seed=0)
        rate = make_rate({"name": "cosine", "initial": 0.05}, num_steps=13)
        optimizer = make_optimizer("adam", model, lr=rate.initial)
        return TrainingInParts(
            model, blobs, optimizer, rate, num_steps=13, num_parts=3, seed=0, batch_size=8
        )

    whole, shared = begun(), begun()
    expected = list(whole)
    assert shared.batch_size == 8
    model, optimizer, generator = shared.learner
    found, rates = [], shared.next_part()
    stats = blobs.train_steps(
        model,
        optimizer,
        len(rates),
        batch_size=8,
        generator=generator,
        schedule=lambda step: rates[min(step, len(rates) - 1)],
    )
    metrics = blobs.evaluate(model)
    found.append(
        shared.finish_part(
            loss=stats.mean_loss, validation_loss=metrics.loss, accuracy=metrics.metric
        )
    )
    assert shared.progress == "after 4 of 13 steps"
    continued = begun()
    continued.load_state_dict(shared.state_dict())
    assert [*found, *continued] == expected
    assert continued.next_part() == []
    for one, other in zip(
        continued.learner[0].parameters(), whole.learner[0].parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_only_schedules_can_be_followed_elsewhere(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    rate = make_rate({"name": "plateau", "initial": 0.1}, num_steps=4)
    optimizer = make_optimizer("sgd", model, lr=0.1)
    parts = TrainingInParts(model, blobs, optimizer, rate, num_steps=4, num_parts=2, seed=0)
    with pytest.raises(ValueError, match="only training whose rate follows a schedule"):
        parts.next_part()
