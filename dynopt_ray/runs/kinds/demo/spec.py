"""`kind: demo`."""

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
    """Everything, one after the other: policy, adaptation, search, stream.

    Attributes:
        cost_weight: λ of utility = accuracy − λ · relative cost, the same everywhere. The
            policy's rewards and decisions take the smoother `Metrics.smooth` for accuracy.
        policy: how the structure policy learns, on networks of this task.
        num_episodes: episodes in which it is compared with a random one.
        adapt: how it changes the trained network.
        search: how pruning and retraining of the adapted network are searched.
        space: what is searched.
        stream: what the winner goes on learning on.
        learner: how.
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
