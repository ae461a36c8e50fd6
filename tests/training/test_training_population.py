"""Rates that are bred: members of a population take over from each other."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from dynopt_ray.structure import Mask, mask_of, trace
from dynopt_ray.training import PopulationBasedRate


def population(
    num_members: int, **options: Any
) -> tuple[list[nn.Linear], list[Optimizer], PopulationBasedRate]:
    models = [nn.Linear(3, 2) for _ in range(num_members)]
    optimizers: list[Optimizer] = [
        torch.optim.Adam(m.parameters(), lr=0.1 * 2**i) for i, m in enumerate(models)
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    return models, optimizers, PopulationBasedRate(models, optimizers, **options)


def test_members_that_lag_take_over_weights_optimizer_and_a_varied_rate() -> None:
    models, optimizers, rates = population(5, share=0.4, factors=(0.5, 4.0))
    before = [copy.deepcopy(m.state_dict()) for m in models]
    sources = rates.observe([3.0, 1.0, math.nan, 2.0, 5.0])
    assert [sources[i] for i in (0, 1, 3)] == [0, 1, 3]
    for member in (2, 4):  # NaN and the largest loss; the best two are 1 and 3
        source = sources[member]
        assert source in (1, 3)
        assert torch.equal(models[member].weight, before[source]["weight"])
        moments = [o.state[m.weight]["exp_avg"] for o, m in zip(optimizers, models, strict=True)]
        assert torch.equal(moments[member], moments[source])
        assert moments[member] is not moments[source]
        assert rates.lrs[member] / rates.lrs[source] in (0.5, 4.0)
    for member in (0, 1, 3):
        assert torch.equal(models[member].weight, before[member]["weight"])
        assert rates.lrs[member] == 0.1 * 2**member


@pytest.mark.parametrize("place", range(5))
def test_nan_is_worse_than_any_loss_wherever_it_stands(place: int) -> None:
    models, _, rates = population(5, share=0.2)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    losses = [3.0, 2.0, 1.0, 4.0, 5.0]
    losses[place] = math.nan
    best = 2 if place != 2 else 1
    wanted = [best if member == place else member for member in range(5)]
    assert rates.observe(losses) == wanted
    for model, source in zip(models, wanted, strict=True):
        assert torch.equal(model.weight, before[source]["weight"])


@pytest.mark.parametrize("first", range(4))
def test_members_whose_losses_are_nan_are_nobodys_source(first: int) -> None:
    for second in range(first + 1, 5):
        losses = [1.0, 2.0, 3.0, 4.0, 5.0]
        losses[first] = losses[second] = math.nan
        sources = population(5, share=0.4)[2].observe(losses)
        left = [member for member in range(5) if member not in (first, second)]
        assert {sources[first], sources[second]} <= set(left[:2])
        assert [sources[member] for member in left] == left


@pytest.mark.parametrize(
    ("num_members", "share", "num_lagging"),
    [(2, 0.5, 1), (4, 0.2, 1), (5, 0.4, 2), (9, 0.25, 2), (9, 0.33, 2), (9, 0.5, 4)],
)
def test_a_share_is_rounded_down_and_at_least_one_lags(
    num_members: int, share: float, num_lagging: int
) -> None:
    rates = population(num_members, share=share)[2]
    sources = rates.observe([*range(num_members)])
    stays = num_members - num_lagging
    assert sources[:stays] == [*range(stays)]
    assert all(source < num_lagging for source in sources[stays:])


def test_masks_are_taken_over_too() -> None:
    models, optimizers, rates = population(2)
    keep = torch.arange(6).reshape(2, 3) % 2 > 0
    trace(models[0], torch.zeros(2, 3)).apply(Mask("weight", keep=keep), optimizer=optimizers[0])
    rates.copy(0, 1)
    models[1](torch.randn(4, 3)).sum().backward()
    optimizers[1].step()
    assert torch.equal(models[1].weight != 0, keep)
    rates.copy(1, 0)
    unmasked, others, more = population(2)
    trace(unmasked[1], torch.zeros(2, 3)).apply(Mask("weight", keep=keep), optimizer=others[1])
    more.copy(0, 1)
    assert mask_of(unmasked[1].weight) is None
    assert torch.equal(unmasked[1].weight, unmasked[0].weight)


def test_a_population_finds_a_rate_on_the_way() -> None:
    # Three of four rates are too small to get far in the time there is.
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    models = [nn.Linear(3, 1) for _ in range(4)]
    for model in models:
        nn.init.zeros_(model.weight)
    optimizers: list[Optimizer] = [
        torch.optim.SGD(m.parameters(), lr=lr)
        for m, lr in zip(models, (1e-6, 1e-5, 1e-4, 0.05), strict=True)
    ]
    rates = PopulationBasedRate(models, optimizers, share=0.5)
    losses: list[float] = []
    for _ in range(10):
        for model, optimizer in zip(models, optimizers, strict=True):
            for _ in range(5):
                optimizer.zero_grad()
                (model(x)[:, 0] - x.sum(1)).square().mean().backward()
                optimizer.step()
        with torch.no_grad():
            losses = [float((model(x)[:, 0] - x.sum(1)).square().mean()) for model in models]
        rates.observe(losses)
    assert max(losses) < 0.1
    assert min(rates.lrs) > 1e-2


def test_a_population_goes_on_from_its_state() -> None:
    _, _, rates = population(8, share=0.5, seed=3)
    _, _, other = population(8, share=0.5, seed=4)
    rates.observe([*range(8)])
    other.load_state_dict(json.loads(json.dumps(rates.state_dict())))
    assert rates.observe([*range(8)]) == other.observe([*range(8)])


def test_members_of_other_shapes_are_refused_and_nothing_changes() -> None:
    models, _, rates = population(3)
    models[2].weight = nn.Parameter(torch.zeros(4, 3))
    before = [m.weight.clone() for m in models]
    with pytest.raises(ValueError, match="network 2 has other shapes"):
        rates.observe([1.0, 2.0, 3.0])
    assert all(torch.equal(m.weight, w) for m, w in zip(models, before, strict=True))
    with pytest.raises(ValueError, match="2 losses for 3 members"):
        rates.observe([1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m, o: PopulationBasedRate(m[:1], o[:1]), "two or more"),
        (lambda m, o: PopulationBasedRate(m, o[:1]), "an optimizer for each"),
        (lambda m, o: PopulationBasedRate([m[0]] * 2, o), "given twice; give copies"),
        (lambda m, o: PopulationBasedRate(m, o, share=0.6), "share is 0.6"),
        (lambda m, o: PopulationBasedRate(m, o, factors=(0.0, 1.0)), "one of the factors is 0.0"),
        (lambda m, o: PopulationBasedRate(m, o, factors=1.2), "factors are 1.2; give two"),  # type: ignore[arg-type]
        (
            lambda m, o: PopulationBasedRate(m, [o[0], SGD(m[1].parameters())]),
            "optimizer 1 is SGD over",
        ),
        (
            lambda m, o: PopulationBasedRate(
                m, [o[0], Adam([{"params": [p]} for p in m[1].parameters()])]
            ),
            r"groups of \[1, 1\] parameters, but the first is Adam over \[2\]",
        ),
        (lambda m, o: PopulationBasedRate([m[0], m[1].double()], o), "network 1 has other shapes"),
    ],
)
def test_a_population_of_nonsense_is_refused(make: Callable[..., Any], reason: str) -> None:
    models, optimizers, _ = population(2)
    with pytest.raises(ValueError, match=reason):
        make(models, optimizers)
