"""RLlib's DQN with our own replay, and with a state that can be saved and restored exactly.

Training proceeds in rounds. In each round, every environment takes one step with an ε-greedy
action, and the step is added to `PrioritizedReplay`. After a warm-up, RLlib's learner then takes
some gradient steps on transitions drawn from the replay. It computes double-DQN targets from their
n-step rewards, and its TD errors become their new priorities. At the end of the round, the
environment runners get the new weights, and an exponential moving average of the weights is
updated. This average becomes the policy, because the networks of single rounds differ much more
from each other.

A resumed run must continue exactly like an uninterrupted one, but RLlib does not save environments
in the middle of an episode. So every save ends all episodes. `state_dict` has the weights, the
optimizer, the replay, the average and the counters. `restart_episodes` then drops the unfinished
episodes, and seeds the environments and torch with a seed that depends only on the run's seed and
its number of steps. An uninterrupted run calls it after every save, and a resumed run calls it
after loading. From there, both have the same state, and continue identically: bit for bit if
sampling and learning run in one process.
"""

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
    """DQN with a replay that also returns the shorter transitions at the ends of episodes.

    RLlib types some attributes as if they could be missing. They exist once the algorithm is
    built, so they are declared again here.

    Attributes:
        replay: the replay; must be set before training.
        settings: the settings of the run; must be set before training.
        num_steps: number of environment steps taken so far.
        returns: the returns of the latest 100 episodes.
        average: the moving average of the network's parameters by name; empty before the first
            gradient step.
    """

    replay: PrioritizedReplay
    settings: DQNSettings
    env_runner_group: Any
    learner_group: Any
    metrics: Any
    num_steps: int

    def setup(self, config: Any) -> None:
        """Build the algorithm as it is before the first step."""
        super().setup(config)
        self.num_steps = 0
        self.average: dict[str, NDArray[np.float32]] = {}
        self.returns: deque[float] = deque(maxlen=_NUM_RETURNS)
        self._earned: dict[str, float] = defaultdict(float)

    def training_step(self) -> None:
        """Take one step in every environment, then some gradient steps."""
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
        """Return the parameters of the online and the target network as NumPy arrays by name."""
        module = f"{_LEARNER}/rl_module/{DEFAULT_MODULE_ID}"
        state = self.learner_group.get_state(components=module)
        found: dict[str, Any] = state[_LEARNER]["rl_module"][DEFAULT_MODULE_ID]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training needs to continue, except unfinished episodes."""
        learner = self.learner_group.get_state(components=_LEARNER)[_LEARNER]
        return {
            "learner": {part: learner[part] for part in _LEARNER_PARTS},
            "replay": self.replay.state_dict(),
            "average": dict(self.average),
            "returns": list(self.returns),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned. Call `restart_episodes` afterwards."""
        self.learner_group.set_state({_LEARNER: state["learner"]})
        self.replay.load_state_dict(state["replay"])
        self.average = {name: np.array(value) for name, value in state["average"].items()}
        self.returns = deque(state["returns"], maxlen=_NUM_RETURNS)
        self.num_steps = state["num_steps"]
        self._sync()

    def restart_episodes(self, seed: int) -> None:
        """Restart all episodes, and seed the environments and torch's generator.

        A run calls this after every save, and a resumed run after loading, so that both continue
        identically.
        """
        torch.default_generator.manual_seed(seed)
        self.replay.forget_unfinished()
        self._earned.clear()
        self.env_runner_group.foreach_env_runner(partial(_restart, seed=seed))

    def _add(self, episode: Any) -> None:
        """Add a chunk of an episode to the replay, and its rewards to the return of the episode."""
        self.num_steps += len(episode)
        add_episode(self.replay, episode)
        self._earned[episode.id_] += float(sum(episode.get_rewards()))
        if episode.is_done:
            self.returns.append(self._earned.pop(episode.id_))

    def _update(self) -> None:
        """Take one gradient step, and update the priorities of the transitions that it used."""
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
        """Copy the learner's weights to the runners, which act in the environments."""
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group,
            policies=[DEFAULT_MODULE_ID],
            inference_only=True,
        )

    def _average(self) -> None:
        """Move the averaged network towards the present one; the window is counted in rounds."""
        settings = self.settings
        steps_per_round = settings.num_envs * max(1, settings.num_env_runners)
        window = settings.averaging_fraction * settings.num_steps / steps_per_round
        online = self.module_state()
        if not self.average:
            self.average = {name: np.array(value) for name, value in online.items()}
        for name, value in self.average.items():
            value += (online[name] - value) / max(1.0, window)


def algorithm_config(settings: DQNSettings, num_action_features: int) -> DQNConfig:
    """Return RLlib's configuration for these settings and the registered environment."""
    rate = settings.learning_rate
    config: Any = DQNConfig
    made: DQNConfig = (
        config(algo_class=StructureDQN)
        .environment(REGISTERED_NAME)
        .framework("torch")
        .env_runners(
            num_env_runners=settings.num_env_runners,
            num_envs_per_env_runner=settings.num_envs,
            num_gpus_per_env_runner=settings.gpus_per_env_runner,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=1,
            sample_timeout_s=REMOTE_TIMEOUT_S,
        )
        .learners(
            num_learners=settings.num_learners, num_gpus_per_learner=settings.gpus_per_learner
        )
        .training(
            lr=[[0, rate], [settings.num_steps, rate / 10]],
            gamma=settings.discount,
            train_batch_size_per_learner=settings.batch_size,
            double_q=True,
            dueling=True,
            n_step=1,  # our replay sums rewards; the learner reads k from each transition
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
                    "num_action_features": num_action_features,
                    "temperature": settings.temperature,
                },
            )
        )
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
        .debugging(seed=settings.seed, log_level="ERROR")
    )
    return made


def add_episode(replay: PrioritizedReplay, episode: Any) -> None:
    """Add RLlib's chunk of an episode to a replay, step by step."""
    observations = episode.get_observations()
    features, masks = observations["observations"], observations["action_mask"]
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
    # Every process that samples gets other seeds, and so plays other episodes.
    runner._seed = seed + runner.worker_index * runner.num_envs
    runner._needs_initial_reset = True


def _as_rllib(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the replay's columns under the names that RLlib's DQN learner reads."""
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
