"""Trials of pruning and retraining a real network."""

from dataclasses import replace

import pytest
import torch

from dynopt_ray.cluster.pruning_trials.prune_trial import PruneTrial
from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.errors import DivergedError
from dynopt_ray.structure import Cost, measure
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training.loop.stored_networks import loaded_network, network_bytes


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task({"name": "digits-mlp", "hidden": [24]})


@pytest.fixture(scope="module")
def network(task: Task) -> bytes:
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task.train_steps(model, optimizer, 150, generator=torch.Generator().manual_seed(0))
    return network_bytes(model)


def test_a_trial_prunes_retrains_and_reports(task: Task, network: bytes) -> None:
    trial = PruneTrial(task, network, retrain_steps=40, num_reports=4)
    config = {"remove_fraction": 0.5, "lr": {"name": "cosine", "initial": 0.01}}
    reports = list(trial(config))
    assert [report.step for report in reports] == [10, 20, 30, 40]
    assert [report.final for report in reports] == [False, False, False, True]
    assert len({report.cost for report in reports}) == 1
    assert 0.4 < reports[0].cost < 0.6
    rates = [report.details["lr"] for report in reports]
    assert rates == sorted(rates, reverse=True)
    assert reports[-1].network is not None
    pruned = loaded_network(task, reports[-1].network())
    assert task.evaluate(pruned).metric == reports[-1].accuracy
    assert sum(p.numel() for p in pruned.parameters()) == reports[-1].details["params"]


def test_removing_nothing_only_retrains(task: Task, network: bytes) -> None:
    trial = PruneTrial(task, network, retrain_steps=5, num_reports=1)
    (report,) = trial({"remove_fraction": 0})
    assert report.cost == 1.0


def test_the_range_test_uses_the_network_that_the_trial_prunes(task: Task, network: bytes) -> None:
    trial = PruneTrial(task, network)
    found = [trial.find_rate({"remove_fraction": share, "lr": 1e-4}) for share in (0.9, 0.3)]
    assert all(1e-4 < rate < 1 for rate in found)
    assert found[0] == trial.find_rate({"remove_fraction": 0.9, "lr": 0.1})
    assert found[0] > found[1]  # more was removed, so more has to be learned


def test_what_a_trial_draws_depends_on_its_seed_and_on_the_searchs(
    task: Task, network: bytes
) -> None:
    def losses(*, search_seed: int, seed: int) -> list[float]:
        trial = PruneTrial(task, network, retrain_steps=6, num_reports=2, seed=search_seed)
        config = {"remove_fraction": 0.3, "criterion": "random", "seed": seed}
        return [report.details["validation_loss"] for report in trial(config)]

    first = losses(search_seed=0, seed=0)
    assert losses(search_seed=0, seed=0) == first
    assert losses(search_seed=0, seed=1) != first
    assert losses(search_seed=1, seed=0) == losses(search_seed=0, seed=1)


def test_weights_that_are_masked_already_do_not_count(task: Task, network: bytes) -> None:
    config = {"remove_fraction": 0.5, "granularity": "weight", "lr": 1e-4}
    (once,) = PruneTrial(task, network, retrain_steps=5, num_reports=1, cost="nonzero")(config)
    assert once.network is not None
    (twice,) = PruneTrial(task, once.network(), retrain_steps=5, num_reports=1, cost="nonzero")(
        config
    )
    assert once.cost == pytest.approx(0.5, abs=0.02)
    assert twice.cost == pytest.approx(0.5, abs=0.02)


def test_costs_may_be_relative_to_another_start(task: Task, network: bytes) -> None:
    config = {"remove_fraction": 0.5, "lr": 1e-4}
    own = PruneTrial(task, network, retrain_steps=2, num_reports=1, cost="nonzero")
    (first,) = own(config)
    start = _doubled(task, network)
    half = PruneTrial(task, network, retrain_steps=2, num_reports=1, start=start, cost="nonzero")
    (second,) = half(config)
    assert second.cost == pytest.approx(first.cost / 2)


def test_a_rate_that_is_too_high_fails_with_the_step(task: Task, network: bytes) -> None:
    trial = PruneTrial(task, network, retrain_steps=20, num_reports=2, optimizer="sgd")
    with pytest.raises(DivergedError, match=r"^after 0 of 20 steps: the loss is (nan|inf) at step"):
        list(trial({"remove_fraction": 0.1, "lr": 1e30}))


def test_a_search_over_real_networks(task: Task, network: bytes) -> None:
    trial = PruneTrial(task, network, retrain_steps=30, num_reports=3)
    space = {
        "remove_fraction": {"low": 0.2, "high": 0.8},
        "criterion": ["magnitude", "taylor"],
        "recovery": [None, "random"],
        "lr": [{"name": "polynomial", "initial": 0.01, "power": 2}, 0.003],
    }
    result = search(trial, space, num_trials=6, cost_weight=0.3, local=True)
    assert (result.trials["status"] == "finished").all()
    assert {"config.remove_fraction", "config.lr.name", "config.lr"} <= set(result.trials)
    assert result.network is not None
    winner = loaded_network(task, result.network)
    assert task.evaluate(winner).metric == result.best.accuracy


def _doubled(task: Task, network: bytes) -> Cost:
    cost = measure(loaded_network(task, network), task.example_inputs())
    return replace(cost, nonzero=2 * cost.nonzero)
