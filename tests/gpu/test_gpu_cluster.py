"""Trials, actors and sessions use the GPUs that they were granted, and no more of them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dynopt_ray.cluster import (
    ClusterNeed,
    Measurement,
    PruneTrial,
    check_nodes,
    search,
    training_need,
)
from dynopt_ray.cluster.learners.handle import RemoteLearner
from dynopt_ray.cluster.resources import CONTEXT_BYTES, memory_fraction, use_resources
from dynopt_ray.cluster.sessions.preflight import Node
from dynopt_ray.devices import chosen_device, gpus_granted
from dynopt_ray.errors import ClusterError
from dynopt_ray.policies import DQNSettings
from dynopt_ray.tasks import load_task
from dynopt_ray.training import network_bytes
from tests.gpu.stand_in import StandIn, stand_in
from tests.gpu.stand_in.machine import MEMORY_BYTES

GPU = torch.device("cuda:0")


def where(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """A trial that tells which device it is to use, and whether it repeats exactly."""
    del config
    details = {
        "gpu": float(chosen_device("auto").type == "cuda"),
        "deterministic": float(torch.are_deterministic_algorithms_enabled()),
    }
    yield Measurement(step=1, accuracy=0.5, cost=0.0, final=True, details=details)


@pytest.mark.parametrize("gpus_per_trial", [0, 0.5, 1])
def test_a_trial_in_this_process_uses_a_gpu_only_if_granted(
    gpu: torch.device, gpus_per_trial: float
) -> None:
    result = search(where, {"x": [1]}, searcher="grid", local=True, gpus_per_trial=gpus_per_trial)
    assert result.trials["gpu"].tolist() == [float(gpus_per_trial > 0)]
    assert chosen_device("auto") == gpu


@pytest.mark.parametrize("deterministic", [True, False])
def test_trials_repeat_exactly_if_asked_to(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # a choice of the user's own
    result = search(where, {"x": [1]}, searcher="grid", local=True, deterministic=deterministic)
    assert result.trials["deterministic"].tolist() == [float(deterministic)]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("granted", [True, False])
def test_pruning_trials_and_their_range_test_keep_to_it(gpu: torch.device, granted: bool) -> None:
    """Also if the task lies on a GPU: a search reads it from a pickle."""
    task = load_task({"name": "digits-mlp", "hidden": [8], "device": str(gpu)})
    model = task.new_model(seed=0)
    task.train_steps(model, torch.optim.Adam(model.parameters(), lr=0.01), 20)
    trial = PruneTrial(task, network_bytes(model), retrain_steps=4, num_reports=2)
    seen, states = [], []
    with gpus_granted(granted):
        for measurement in trial({"remove_fraction": 0.5}):
            assert measurement.row_scores is None or len(measurement.row_scores)
            assert measurement.state is not None
            states.append(measurement.state())
            seen.append(measurement.step)
        rest = [m.step for m in trial({"remove_fraction": 0.5}, states[0])]
        used, _ = trial._loaded()
        assert used.device.type == ("cuda" if granted else "cpu")
        assert trial.find_rate({"remove_fraction": 0.5}) > 0
    assert seen == [2, 4]
    assert rest == [4]


@pytest.mark.parametrize("optimizer", ["adam", {"name": "sgd", "momentum": 0.9}])
def test_trials_of_a_pack_are_trained_together_on_a_gpu(gpu: torch.device, optimizer: Any) -> None:
    """They give the figures of the CPU."""
    task = load_task({"name": "digits-mlp", "hidden": [8], "device": str(gpu)})
    model = task.new_model(seed=0)
    task.train_steps(model, torch.optim.Adam(model.parameters(), lr=0.01), 40)
    trial = PruneTrial(
        task, network_bytes(model), retrain_steps=8, num_reports=2, optimizer=optimizer
    )
    found = [
        search(
            trial,
            {"remove_fraction": [0.2, 0.5], "lr": [0.01]},
            searcher="grid",
            num_reports=2,
            pack=2,
            local=True,
            gpus_per_trial=gpus,
        )
        for gpus in (1, 0)
    ]
    on_gpu, on_cpu = (result.trials for result in found)
    assert (on_gpu["status"] == "finished").all()
    assert on_gpu["accuracy"].tolist() == pytest.approx(on_cpu["accuracy"].tolist(), abs=0.1)


def test_actors_see_the_gpus_that_they_were_granted(
    gpus: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_resources(1, 1)
    use_resources(1, 0.5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert gpus.memory_fractions == {0: memory_fraction(0.5, MEMORY_BYTES)}
    use_resources(2, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("gpus", "sharing"), [(0.5, 2), (1 / 3, 3), (0.3, 3), (0.6, 1), (0.1, 10)])
def test_all_that_share_a_gpu_fit_into_its_memory(gpus: float, sharing: int) -> None:
    fraction = memory_fraction(gpus, MEMORY_BYTES)
    taken = sharing * (fraction * MEMORY_BYTES + CONTEXT_BYTES)
    assert taken == pytest.approx(MEMORY_BYTES)


def test_more_than_fit_into_its_memory_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"20 processes share a GPU of 10\.0 GiB"):
        memory_fraction(0.05, 10 * 2**30)


@pytest.mark.parametrize("gpus", [1.5, 2.25, -1, float("nan"), float("inf")])
def test_fractions_of_several_gpus_are_refused(gpus: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gpus is"):
        ClusterNeed(gpus=gpus)
    with pytest.raises(ValueError, match="gpus is"):
        RemoteLearner("tests.online.durable_learners:build", tmp_path, num_gpus=gpus)
    with pytest.raises(ValueError, match="gpus_per_trial "):
        search(where, {"x": [1]}, searcher="grid", local=True, gpus_per_trial=gpus)
    with pytest.raises(ValueError, match="gpus_per_learner is"):
        DQNSettings(gpus_per_learner=gpus)
    assert ClusterNeed(gpus=2).gpus == 2


@pytest.mark.parametrize(
    ("gpus", "on_node", "room"),
    [(0.6, 4, 4), (0.5, 4, 8), (1 / 3, 2, 6), (1, 4, 4), (0.25, 0, 0), (2, 5, 2)],
)
def test_room_is_counted_on_each_gpu(gpus: float, on_node: int, room: int) -> None:
    need = ClusterNeed(cpus=1, gpus=gpus)
    assert need.room(Node("a", cpus=100, gpus=on_node)) == room
    if room and gpus < 1:
        # Ray, which adds up what is left of the GPUs of a node, then counts the same.
        assert int(on_node / need.actor_options["num_gpus"]) == room


def test_gpus_that_are_reserved_at_the_same_time_are_counted() -> None:
    need = ClusterNeed(gpus=1, total_gpus=3)
    check_nodes(need, [Node("a", 4, 1), Node("b", 4, 2)])
    with pytest.raises(ClusterError, match="reserves 3 GPUs at the same time, but there are 2"):
        check_nodes(need, [Node("a", 4, 1), Node("b", 4, 1)])


@pytest.mark.cuda
@pytest.mark.ray
def test_two_trials_share_a_gpu_and_others_see_none() -> None:
    shared = search(where, {"x": [0, 1]}, searcher="grid", gpus_per_trial=0.5)
    assert shared.trials["gpu"].all()
    assert (shared.trials["status"] == "finished").all()
    assert not search(where, {"x": [0]}, searcher="grid").trials["gpu"].any()


def test_nothing_of_a_stand_in_reaches_trials_of_others() -> None:
    with stand_in(num_devices=0):
        result = search(where, {"x": [1]}, searcher="grid", local=True, gpus_per_trial=1)
    assert not result.trials["gpu"].any()


@pytest.mark.ray
@pytest.mark.parametrize("gpus_per_learner", [0, 1])
def test_policies_are_trained_on_a_gpu(gpu: torch.device, gpus_per_learner: int) -> None:
    """The environments compute on the GPU, and the learner does if it is given one."""
    from dynopt_ray.cluster import train_policy

    env = {"task": {"name": "digits-mlp", "hidden": [12]}, "device": "auto", "horizon": 4}
    settings = {
        "num_steps": 200,
        "num_envs": 4,
        "warmup_steps": 50,
        "updates_per_step": 1,
        "gpus_per_learner": gpus_per_learner,
        "env_kwargs": {**env, "train_steps": 2, "num_starts": 2, "start_steps": 30},
    }
    assert chosen_device("auto") == gpu
    policy = train_policy(settings)
    assert {p.device.type for p in policy.network.parameters()} == {"cpu"}
    assert not torch.are_deterministic_algorithms_enabled()  # RLlib sets it


def test_gpus_of_policy_training_are_counted() -> None:
    settings = DQNSettings(
        num_env_runners=3, num_learners=2, gpus_per_env_runner=0.25, gpus_per_learner=1
    )
    need = training_need(settings)
    assert (need.gpus, need.total_cpus, need.total_gpus) == (1, 5, 2.75)
    assert training_need(DQNSettings(gpus_per_learner=1)).gpus == 0
