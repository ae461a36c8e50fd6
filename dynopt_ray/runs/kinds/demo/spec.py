"""The spec of `kind: demo`."""

from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.policies import DQNSettings
from dynopt_ray.runs.kind import Kind
from dynopt_ray.runs.kinds.adapt import AdaptSettings
from dynopt_ray.runs.kinds.policy import PolicyTraining
from dynopt_ray.runs.kinds.search import SearchSettings, SearchSpace, check_space
from dynopt_ray.runs.kinds.stream import LearnerSettings, StreamSettings
from dynopt_ray.runs.spec import UtilitySpec


class DemoSpec(UtilitySpec):
    """Train a policy, let it adapt a network, search from there, and learn on a stream.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · relative cost, the same in all parts. The
            policy's rewards and decisions use the smoother `Metrics.smooth` in place of accuracy.
        policy: how the structure policy is trained, on networks of this task.
        num_episodes: number of episodes in which it is compared with a random policy.
        adapt: how it changes the trained network.
        search: how pruning and retraining of the adapted network are searched.
        space: the space of this search.
        stream: the stream on which the winner of the search keeps learning.
        learner: how the winner keeps learning.
    """

    kind: Literal["demo"]
    policy: PolicyTraining = DQNSettings()
    num_episodes: int = Field(default=32, ge=1)
    adapt: AdaptSettings = AdaptSettings()
    search: SearchSettings
    space: SearchSpace
    stream: StreamSettings = StreamSettings()
    learner: LearnerSettings = LearnerSettings()

    @model_validator(mode="after")
    def _trials_can_run(self) -> "DemoSpec":
        check_space(self.space, self.search.retrain_steps)
        return self


KIND = Kind(DemoSpec, "dynopt_ray.runs.kinds.demo.runner:prepare")
