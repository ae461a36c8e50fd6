"""`train_policy`: a DQN policy, learned with RLlib."""

import contextlib
import logging
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from ray.tune.registry import register_env

from dynopt_ray.cluster.policy_training.algorithm import REGISTERED_NAME, algorithm_config
from dynopt_ray.cluster.policy_training.module import exported_network
from dynopt_ray.cluster.policy_training.replay import PrioritizedReplay
from dynopt_ray.cluster.policy_training.stored_training import read_training, write_training
from dynopt_ray.cluster.sessions import session
from dynopt_ray.errors import DataError
from dynopt_ray.policies import DQNPolicy, DQNSettings

_RLLIB_ENVIRONMENT = "rllib-single-agent-env-v0"


@dataclass(frozen=True)
class PolicyProgress:
    """How far training is.

    Attributes:
        num_steps: environment steps taken.
        total_steps: environment steps in all.
        mean_return: of the latest 100 episodes, exploration included; None before the first ends.
        duration_s: seconds since this process began training.
    """

    num_steps: int
    total_steps: int
    mean_return: float | None
    duration_s: float


def train_policy(
    settings: DQNSettings | Mapping[str, Any] | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    on_progress: Callable[[PolicyProgress], None] | None = None,
    address: str | None = None,
) -> DQNPolicy:
    """Learn a policy with double, dueling, n-step DQN on prioritized replay.

    With a directory, everything is saved there every `save_every_steps`, replay included, and a
    second call with the same settings goes on from what was saved: the policy is, bit for bit,
    that of a run that was never interrupted (as long as sampling and learning are in one
    process). The finished policy is there too, as `policy.safetensors`.

    Args:
        settings: see `DQNSettings`; a mapping of them, or None for the defaults.
        directory: where the run is saved; None saves nothing.
        on_progress: called after every round of environment steps.
        address: of a Ray cluster, as `session` takes it; None uses the one that runs, or starts
            one for the time being.

    Raises:
        ValueError: a setting out of range, or `n_step` beyond the environment's horizon.
        DataError: an environment without `Dict(observations, action_mask)` or `Discrete` actions.
        CheckpointError: what the directory holds is damaged or of other settings.
        ClusterError: the cluster lacks something.

    Example:
        >>> policy = train_policy(
        ...     {"num_steps": 37_000, "env_kwargs": {"task": "digits-mlp"}}
        ... )  # doctest: +SKIP
    """
    if not isinstance(settings, DQNSettings):
        settings = DQNSettings(**(settings or {}))
    place = None if directory is None else Path(directory).resolve()
    features, actions = _sizes(settings)
    num_cpus = 1 + settings.num_env_runners + settings.num_learners
    with _undisturbed(), session(address, num_cpus=None if address else num_cpus):
        torch.set_num_threads(1)
        algorithm = _build(settings, features, actions)
        try:
            _run(algorithm, settings, place, on_progress)
            policy = _exported(algorithm, settings)
        finally:
            algorithm.stop()
    if place is not None:
        policy.save(place / "policy.safetensors")
    return policy


def _run(
    algorithm: Any,
    settings: DQNSettings,
    directory: Path | None,
    on_progress: Callable[[PolicyProgress], None] | None,
) -> None:
    start = time.perf_counter()
    path = None if directory is None else directory / "training.safetensors"
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    if path is not None and path.exists():
        algorithm.load_state_dict(read_training(path, settings.as_dict()))
    algorithm.restart_episodes(_seed(settings.seed, algorithm.num_steps))
    saved = algorithm.num_steps
    while algorithm.num_steps < settings.num_steps:
        algorithm.train()
        if on_progress is not None:
            returns = algorithm.returns
            mean = float(np.mean(returns)) if returns else None
            seconds = time.perf_counter() - start
            on_progress(PolicyProgress(algorithm.num_steps, settings.num_steps, mean, seconds))
        over = algorithm.num_steps >= settings.num_steps
        if over or algorithm.num_steps - saved >= settings.save_every_steps:
            saved = algorithm.num_steps
            if path is not None:
                write_training(path, algorithm.state_dict(), settings.as_dict())
            algorithm.restart_episodes(_seed(settings.seed, saved))


def _build(settings: DQNSettings, num_features: int, num_actions: int) -> Any:
    # RLlib registers this with Gymnasium every time, which then warns of the one before.
    gymnasium.registry.pop(_RLLIB_ENVIRONMENT, None)
    register_env(
        REGISTERED_NAME, lambda config: _environment(settings, num_envs=config["num_envs"])
    )
    algorithm: Any = algorithm_config(settings).build_algo()
    algorithm.settings = settings
    algorithm.replay = PrioritizedReplay(
        capacity=settings.capacity,
        num_features=num_features,
        num_actions=num_actions,
        n_step=settings.n_step,
        discount=settings.discount,
        alpha=settings.priority,
        beta=settings.priority_correction,
        seed=settings.seed,
    )
    return algorithm


def _environment(
    settings: DQNSettings, *, num_envs: int
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(
        settings.env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        **settings.env_kwargs,
    )


def _sizes(settings: DQNSettings) -> tuple[int, int]:
    """Features and actions of the environment, once it is known to suit."""
    env = _environment(settings, num_envs=1)
    seen, actions = env.single_observation_space, env.single_action_space
    horizon = getattr(env.unwrapped, "horizon", None)
    env.close()
    if (
        not isinstance(actions, spaces.Discrete)
        or not isinstance(seen, spaces.Dict)
        or set(seen.spaces) != {"observations", "action_mask"}
    ):
        raise DataError(
            f"{settings.env_id} has observations {seen} and actions {actions}; a DQN policy needs "
            f"Dict(observations, action_mask) and Discrete"
        )
    if horizon is not None and settings.n_step > horizon:
        raise ValueError(
            f"n_step is {settings.n_step} but episodes end after {horizon} decisions, so nothing "
            f"would ever be bootstrapped; choose n_step <= {horizon} or a longer horizon"
        )
    features = seen["observations"].shape
    assert features is not None
    return int(features[0]), int(actions.n)


def _exported(algorithm: Any, settings: DQNSettings) -> DQNPolicy:
    network = exported_network(
        algorithm.average or algorithm.module_state(), settings.hidden, settings.head
    )
    metadata = {"settings": settings.as_dict(), "num_steps": algorithm.num_steps}
    return DQNPolicy(network, hidden=settings.hidden, head=settings.head, metadata=metadata)


def _seed(seed: int, num_steps: int) -> int:
    """Another seed for each stretch of training, the same for the same stretch."""
    return zlib.crc32(f"{seed} {num_steps}".encode()) % 2**31


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Afterwards random state, threads and RLlib's log level are as they were.

    RLlib announces its new API stack at every start and seeds the generators of the whole
    process. And the matrices of a policy and of a stack of small networks gain little from a
    second thread, but wait long for it where the cores are shared.
    """
    python, numpy, num_threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    logger = logging.getLogger("ray.rllib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads(num_threads)
            logger.setLevel(level)
