"""RLlib's DQN with our replay: sampling, learning and exact restoring in one object."""

from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TD_ERROR_KEY,
)

from dynopt_ray.cluster.policy_training.module import MaskedDuelingModule
from dynopt_ray.cluster.policy_training.replay import PrioritizedReplay, Step
from dynopt_ray.policies import DQNSettings

REGISTERED_NAME = "dynopt-policy-environment"
REMOTE_TIMEOUT_S = 600.0
_NUM_RETURNS = 100
_LEARNER = "learner"
_LEARNER_PARTS = ("rl_module", "optimizer", "weights_seq_no")


class StructureDQN(DQN):
    """DQN whose replay cuts n-step transitions at episode ends.

    RLlib's attributes are typed as if they could be missing; they are there once it is built.

    Attributes:
        replay: the transitions.
        settings: of the run.
        num_steps: environment steps taken so far.
        returns: of the latest episodes.
        average: the online network's parameters, averaged over the latest updates.
    """

    replay: PrioritizedReplay
    settings: DQNSettings
    env_runner_group: Any
    learner_group: Any
    metrics: Any
    num_steps: int

    def setup(self, config: Any) -> None:
        """Start from nothing."""
        super().setup(config)
        self.num_steps = 0
        self.average: dict[str, NDArray[np.float32]] = {}
        self.returns: deque[float] = deque(maxlen=_NUM_RETURNS)
        self._earned: dict[str, float] = defaultdict(float)

    def training_step(self) -> None:
        """One step of every environment, then some gradient steps."""
        epsilon = self.settings.epsilon_at(self.num_steps)
        self.env_runner_group.foreach_env_runner(partial(_explore_with, epsilon=epsilon))
        sample: Any = synchronous_parallel_sample
        episodes, results = sample(
            worker_set=self.env_runner_group,
            concat=True,
            sample_timeout_s=REMOTE_TIMEOUT_S,
            _uses_new_env_runners=True,
            _return_metrics=True,
        )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        for episode in episodes:
            self._add(episode)
        if self.num_steps < self.settings.warmup_steps:
            return
        for _ in range(self.settings.updates_per_step):
            self._update()
        self._sync()
        self._average()

    def module_state(self) -> dict[str, Any]:
        """The parameters of online and target network as NumPy arrays."""
        module = f"{_LEARNER}/rl_module/{DEFAULT_MODULE_ID}"
        state = self.learner_group.get_state(components=module)
        found: dict[str, Any] = state[_LEARNER]["rl_module"][DEFAULT_MODULE_ID]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from, but unfinished episodes."""
        learner = self.learner_group.get_state(components=_LEARNER)[_LEARNER]
        return {
            "learner": {part: learner[part] for part in _LEARNER_PARTS},
            "replay": self.replay.state_dict(),
            "average": dict(self.average),
            "returns": list(self.returns),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state of `state_dict` back; `restart_episodes` must follow."""
        self.learner_group.set_state({_LEARNER: state["learner"]})
        self.replay.load_state_dict(state["replay"])
        self.average = {name: np.array(value) for name, value in state["average"].items()}
        self.returns = deque(state["returns"], maxlen=_NUM_RETURNS)
        self.num_steps = state["num_steps"]
        self._sync()

    def restart_episodes(self, seed: int) -> None:
        """Begin all episodes anew, from a seed that also decides all that is drawn from now on.

        A run that goes on after saving and one that is restored from what was saved both do
        this, so they are the same from here on.
        """
        torch.default_generator.manual_seed(seed)
        self.replay.forget_unfinished()
        self._earned.clear()
        self.env_runner_group.foreach_env_runner(partial(_restart, seed=seed))

    def _add(self, episode: Any) -> None:
        """Put RLlib's chunk of an episode into the replay, and its rewards on the account."""
        self.num_steps += len(episode)
        add_episode(self.replay, episode)
        self._earned[episode.id_] += float(sum(episode.get_rewards()))
        if episode.is_done:
            self.returns.append(self._earned.pop(episode.id_))

    def _update(self) -> None:
        """One gradient step, and new priorities for what it learned from."""
        rows, columns = self.replay.sample(self.settings.batch_size)
        samples: Any = SampleBatch
        batch = MultiAgentBatch(
            {DEFAULT_MODULE_ID: samples(_as_rllib(columns))}, env_steps=len(rows)
        )
        results = self.learner_group.update(
            batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_steps}
        )
        errors = [
            np.asarray(error).reshape(-1)
            for result in results
            for error in result[DEFAULT_MODULE_ID].pop(TD_ERROR_KEY).peek()
        ]
        self.replay.update(rows, np.concatenate(errors))
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def _sync(self) -> None:
        """Let the environments' runners act with the network as it is."""
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group,
            policies=[DEFAULT_MODULE_ID],
            inference_only=True,
        )

    def _average(self) -> None:
        """Move the averaged network towards the online one."""
        settings = self.settings
        steps_per_round = settings.num_envs * max(1, settings.num_env_runners)
        window = settings.averaging_fraction * settings.num_steps / steps_per_round
        online = self.module_state()
        if not self.average:
            self.average = {name: np.array(value) for name, value in online.items()}
        for name, value in self.average.items():
            value += (online[name] - value) / max(1.0, window)


def algorithm_config(settings: DQNSettings) -> DQNConfig:
    """RLlib's configuration of these settings, for the registered environment."""
    rate = settings.learning_rate
    config: Any = DQNConfig
    made: DQNConfig = (
        config(algo_class=StructureDQN)
        .environment(REGISTERED_NAME)
        .framework("torch")
        .env_runners(
            num_env_runners=settings.num_env_runners,
            num_envs_per_env_runner=settings.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=1,
            sample_timeout_s=REMOTE_TIMEOUT_S,
        )
        .learners(num_learners=settings.num_learners)
        .training(
            lr=[[0, rate], [settings.num_steps, rate / 10]],
            gamma=settings.discount,
            train_batch_size_per_learner=settings.batch_size,
            double_q=True,
            dueling=True,
            n_step=1,  # summed up by our replay; the learner reads it off each transition
            target_network_update_freq=0,
            tau=settings.target_rate,
            num_steps_sampled_before_learning_starts=settings.warmup_steps,
            replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 2},
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=MaskedDuelingModule,
                model_config={
                    "hidden": list(settings.hidden),
                    "head": settings.head,
                },
            )
        )
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
        .debugging(seed=settings.seed, log_level="ERROR")
    )
    return made


def add_episode(replay: PrioritizedReplay, episode: Any) -> None:
    """Add RLlib's chunk of an episode, step by step."""
    seen = episode.get_observations()
    features, masks = seen["observations"], seen["action_mask"]
    actions, rewards = episode.get_actions(), episode.get_rewards()
    for t in range(len(episode)):
        last = t == len(episode) - 1
        replay.add(
            episode.id_,
            Step(features[t], masks[t], int(actions[t]), float(rewards[t])),
            features[t + 1],
            masks[t + 1],
            terminated=last and episode.is_terminated,
            truncated=last and episode.is_truncated,
        )


def _explore_with(runner: Any, *, epsilon: float) -> None:
    runner.module.epsilon = epsilon


def _restart(runner: Any, *, seed: int) -> None:
    # Each process that samples plays episodes of its own.
    runner._seed = seed + runner.worker_index * runner.num_envs
    runner._needs_initial_reset = True


def _as_rllib(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The replay's columns under the names that RLlib's DQN learner reads."""
    return {
        Columns.OBS: {
            "observations": columns["observations"],
            "action_mask": columns["masks"],
        },
        Columns.NEXT_OBS: {
            "observations": columns["next_observations"],
            "action_mask": columns["next_masks"],
        },
        Columns.ACTIONS: columns["actions"],
        Columns.REWARDS: columns["rewards"],
        Columns.TERMINATEDS: columns["terminated"],
        "weights": columns["weights"],
        "n_step": columns["num_steps"],
    }
