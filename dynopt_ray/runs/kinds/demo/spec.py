"""The spec of `kind: demo`."""

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from dynopt_ray.cluster import ClusterNeed, training_need
from dynopt_ray.policies import ENVIRONMENT, DQNSettings
from dynopt_ray.runs.kind import Kind, WorkPart, training_work
from dynopt_ray.runs.kinds.adapt import AdaptSettings, adaptation_work
from dynopt_ray.runs.kinds.policy import PolicyTraining, policy_work
from dynopt_ray.runs.kinds.search import (
    SearchSettings,
    SearchSpace,
    check_space,
    search_need,
    search_work,
)
from dynopt_ray.runs.kinds.stream import LearnerSettings, StreamSettings, stream_work
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


def demo_need(spec: DemoSpec) -> ClusterNeed:
    """Return what all parts of the demo need from a cluster."""
    searching = search_need(spec.search) or ClusterNeed()
    training = training_need(spec.policy)
    return replace(searching, total_cpus=training.total_cpus, total_gpus=training.total_gpus)


def demo_work(spec: DemoSpec) -> tuple[WorkPart, ...]:
    """Return the work of all parts of the demo."""
    return (
        *training_work(spec),
        policy_work(spec.policy, ENVIRONMENT, {"task": spec.task}),
        adaptation_work(spec.adapt),
        search_work(spec.search, spec.space),
        stream_work(spec.stream),
    )


KIND = Kind(DemoSpec, "dynopt_ray.runs.kinds.demo.runner:prepare", work=demo_work, need=demo_need)
