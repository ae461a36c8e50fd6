"""The spec of `kind: stream`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dynopt_ray.cluster import ClusterNeed
from dynopt_ray.errors import SpecError
from dynopt_ray.online import Drift, Guard
from dynopt_ray.runs.kind import Kind, WorkPart, training_work
from dynopt_ray.runs.spec import (
    DetectorField,
    Fills,
    NetworkSpec,
    OptimizerField,
    RateField,
    ReactionField,
    Strict,
    checked_by,
)


class StreamSettings(Strict):
    """A stream made from the rows of a task.

    Attributes:
        splits: the splits whose rows are the events. The accuracy is honest only on rows that the
            network was not trained on.
        num_events: number of events. Every row comes once before any row comes again. None is one
            pass.
        drifts: changes of the concept; see `dynopt_ray.online.Drift`.
        window: number of events per measurement.
    """

    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        default=("validation", "test"), min_length=1, strict=False
    )
    num_events: int | None = Field(default=None, ge=1)
    drifts: tuple[Annotated[Drift, Fills(Drift)], ...] = Field(default=(), strict=False)
    window: int = Field(default=100, ge=1)


class LearnerSettings(Strict):
    """How the network keeps learning.

    Attributes:
        optimizer: a name, or a mapping with `name` and its options, without the learning rate.
        lr: a number, a schedule over updates, or a controller.
        detector: the detector of drift; None for none.
        reactions: the reactions to a detected drift.
        guard: judges every update by the loss on the latest events; None accepts every update. See
            `dynopt_ray.online.Guard`.
        snapshot_every: number of events between snapshots.
        local: whether to learn in this process instead of a Ray actor.
        num_gpus: number of GPUs of the actor, at most 1. With 0 it learns on the CPU.
    """

    optimizer: OptimizerField = "sgd"
    lr: RateField = 0.01
    detector: DetectorField | None = "adwin"
    reactions: tuple[ReactionField, ...] = Field(default=("raise_rate",), strict=False)
    guard: Annotated[Guard, Fills(Guard)] | None = Guard()
    snapshot_every: int = Field(default=1_000, ge=1)
    local: bool = False
    num_gpus: float = Field(default=0, ge=0, le=1)

    @field_validator("lr")
    @classmethod
    def _is_a_rate(cls, value: Any) -> Any:
        from dynopt_ray.training import make_rate

        def check(config: Any) -> None:
            if make_rate(config, 1_000).population is not None:
                raise SpecError("a population trains several networks; a stream has one learner")

        return checked_by(check)(value)


class StreamSpec(NetworkSpec):
    """Let a trained network keep learning on a stream, and compare it with a frozen copy."""

    kind: Literal["stream"]
    stream: StreamSettings = StreamSettings()
    learner: LearnerSettings = LearnerSettings()


def stream_work(settings: StreamSettings) -> WorkPart:
    """Return the events of the stream."""
    note = "one pass over its rows" if settings.num_events is None else ""
    return WorkPart("stream", settings.num_events or 0, "events", note=note)


KIND = Kind(
    StreamSpec,
    "dynopt_ray.runs.kinds.stream.runner:prepare",
    work=lambda spec: (*training_work(spec), stream_work(spec.stream)),
    need=lambda spec: None if spec.learner.local else ClusterNeed(gpus=spec.learner.num_gpus),
)
