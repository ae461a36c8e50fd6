"""`train_policy` trains a DQN policy with RLlib."""

import contextlib
import logging
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
import torch
from gymnasium import spaces
from ray.tune.registry import register_env

from dynopt_ray.cluster.policy_training.algorithm import REGISTERED_NAME, algorithm_config
from dynopt_ray.cluster.policy_training.module import exported_network
from dynopt_ray.cluster.policy_training.need import training_need
from dynopt_ray.cluster.policy_training.replay import PrioritizedReplay
from dynopt_ray.cluster.policy_training.stored_training import read_training, write_training
from dynopt_ray.cluster.resources import use_resources
from dynopt_ray.cluster.sessions import session
from dynopt_ray.devices import Determinism
from dynopt_ray.errors import CheckpointError, DataError, described
from dynopt_ray.policies import DQNPolicy, DQNSettings

_RLLIB_ENVIRONMENT = "rllib-single-agent-env-v0"


@dataclass(frozen=True)
class PolicyProgress:
    """The progress of policy training.

    Attributes:
        num_steps: number of environment steps taken so far.
        total_steps: number of environment steps of the whole training.
        mean_return: mean return of the latest 100 episodes, including their exploratory actions;
            None before the first episode ends.
        duration_s: time since this process began training, in seconds.
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
    """Train a policy with double, dueling, n-step DQN and prioritized replay.

    If a directory is given, the whole training state, including the replay, is saved there every
    `save_every_steps` steps. A second call with the same settings continues from the saved state.
    Its policy equals, bit for bit, that of an uninterrupted run, provided that sampling and
    learning run in one process. The finished policy is saved as `policy.safetensors`.

    Args:
        settings: the settings, or a mapping of them; see `DQNSettings`. None uses the defaults.
        directory: directory in which the run is saved. None saves nothing.
        on_progress: called after every round, in which each environment takes one step.
        address: address of a Ray cluster; see `session`. None uses the cluster to which this
            process is connected, or starts one that ends with the training.

    Raises:
        ValueError: a setting is out of range, or `n_step` exceeds the environment's horizon.
        DataError: the observations of the environment are not `Dict(observations, action_mask)`,
            or its actions are not `Discrete`.
        CheckpointError: the run saved in the directory is damaged or has other settings.
        ClusterError: the cluster cannot be joined or lacks what training needs.

    Example:
        >>> policy = train_policy(
        ...     {"num_steps": 37_000, "env_kwargs": {"task": "digits-mlp"}}
        ... )  # doctest: +SKIP
    """
    if not isinstance(settings, DQNSettings):
        settings = DQNSettings(**(settings or {}))
    run_directory = None if directory is None else Path(directory).resolve()
    sizes = _sizes(settings)
    num_cpus = 1 + settings.num_env_runners + settings.num_learners
    need = training_need(settings)
    with (
        _undisturbed(),
        session(
            address,
            num_cpus=None if address else num_cpus,
            task_gpus=need.gpus,
            total_gpus=need.total_gpus,
        ),
    ):
        torch.set_num_threads(1)
        algorithm = _build(settings, sizes)
        try:
            _run(algorithm, settings, run_directory, on_progress)
            policy = _exported(algorithm, settings, sizes)
        finally:
            algorithm.stop()
    if run_directory is not None:
        policy.save(run_directory / "policy.safetensors")
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
        _restore(algorithm, path, settings)
    algorithm.restart_episodes(_seed(settings.seed, algorithm.num_steps))
    saved_steps = algorithm.num_steps
    while algorithm.num_steps < settings.num_steps:
        algorithm.train()
        if on_progress is not None:
            returns = algorithm.returns
            mean = float(np.mean(returns)) if returns else None
            seconds = time.perf_counter() - start
            on_progress(PolicyProgress(algorithm.num_steps, settings.num_steps, mean, seconds))
        finished = algorithm.num_steps >= settings.num_steps
        if finished or algorithm.num_steps - saved_steps >= settings.save_every_steps:
            saved_steps = algorithm.num_steps
            if path is not None:
                write_training(path, algorithm.state_dict(), _identity(settings))
            algorithm.restart_episodes(_seed(settings.seed, saved_steps))


def _restore(algorithm: Any, path: Path, settings: DQNSettings) -> None:
    state = read_training(path, _identity(settings))
    try:
        algorithm.load_state_dict(state)
    except Exception as error:  # what RLlib raises if its part has been altered is not documented
        raise CheckpointError(
            f"{path} does not hold the state of this training: {described(error):.400}"
        ) from error


def _build(settings: DQNSettings, sizes: "_Sizes") -> Any:
    # RLlib registers this every time, and Gymnasium would warn that it is registered already.
    gymnasium.registry.pop(_RLLIB_ENVIRONMENT, None)
    register_env(REGISTERED_NAME, partial(_environment_of_runner, settings))
    algorithm: Any = algorithm_config(settings, sizes.action_features).build_algo()
    algorithm.settings = settings
    algorithm.replay = PrioritizedReplay(
        capacity=settings.capacity,
        num_features=sizes.features,
        num_actions=sizes.actions,
        n_step=settings.n_step,
        discount=settings.discount,
        alpha=settings.priority,
        beta=settings.priority_correction,
        seed=settings.seed,
    )
    return algorithm


def _environment_of_runner(
    settings: DQNSettings, config: Any
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Return the environments of a process that samples: an actor, or the main process."""
    if ray.get_runtime_context().get_actor_id() is not None:
        use_resources(1, settings.gpus_per_env_runner)
    return _environment(settings, num_envs=config["num_envs"])


def _environment(
    settings: DQNSettings, *, num_envs: int
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(
        settings.env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        **settings.env_kwargs,
    )


@dataclass(frozen=True)
class _Sizes:
    """The sizes of an environment's observations and actions.

    Attributes:
        features: length of an observation.
        actions: number of actions.
        action_features: number of features of each action at the end of an observation.
    """

    features: int
    actions: int
    action_features: int


def _sizes(settings: DQNSettings) -> _Sizes:
    """Return the sizes of an environment, and refuse an unsuitable one."""
    env = _environment(settings, num_envs=settings.num_envs)
    observations, actions = env.single_observation_space, env.single_action_space
    horizon = getattr(env.unwrapped, "horizon", None)
    action_features = getattr(env.unwrapped, "num_action_features", 0)
    env.close()
    if (
        not isinstance(actions, spaces.Discrete)
        or not isinstance(observations, spaces.Dict)
        or set(observations.spaces) != {"observations", "action_mask"}
    ):
        raise DataError(
            f"{settings.env_id} has observations {observations} and actions {actions}; a DQN "
            f"policy needs Dict(observations, action_mask) and Discrete actions"
        )
    if horizon is not None and settings.n_step > horizon:
        raise ValueError(
            f"n_step is {settings.n_step} but episodes end after {horizon} decisions, so nothing "
            f"would ever be bootstrapped; choose n_step <= {horizon} or a longer horizon"
        )
    shape = observations["observations"].shape
    assert shape is not None
    return _Sizes(int(shape[0]), int(actions.n), int(action_features))


def _exported(algorithm: Any, settings: DQNSettings, sizes: _Sizes) -> DQNPolicy:
    network = exported_network(
        algorithm.average or algorithm.module_state(),
        settings.hidden,
        settings.head,
        sizes.actions,
        sizes.action_features,
    )
    metadata = {"settings": settings.as_dict(), "num_steps": algorithm.num_steps}
    return DQNPolicy(network, hidden=settings.hidden, head=settings.head, metadata=metadata)


def _identity(settings: DQNSettings) -> dict[str, Any]:
    """Return the settings that a continued run must share. It may compute on another device."""
    plain = settings.as_dict()
    del plain["gpus_per_env_runner"], plain["gpus_per_learner"]
    return {**plain, "env_kwargs": {k: v for k, v in plain["env_kwargs"].items() if k != "device"}}


def _seed(seed: int, num_steps: int) -> int:
    """Return the seed for the stretch of training that begins after `num_steps` steps."""
    return zlib.crc32(f"{seed} {num_steps}".encode()) % 2**31


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore generators, determinism, the number of threads and RLlib's log level afterwards.

    RLlib announces its new API stack at every start, seeds the generators of the whole process, and
    may ask PyTorch for deterministic algorithms. Training uses one thread: a second one hardly
    speeds up the small matrices of a policy and of a stack of small networks, but often has to wait
    if other processes use the cores.
    """
    python, numpy, num_threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    logger = logging.getLogger("ray.rllib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        Determinism(torch.are_deterministic_algorithms_enabled()),
    ):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads(num_threads)
            logger.setLevel(level)
