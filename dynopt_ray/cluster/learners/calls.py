"""A learner's actor, and calls to it that survive its restarts."""

import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from dynopt_ray.cluster.learners.actor import LearnerActor, LearnerStatus
from dynopt_ray.cluster.sessions import ClusterNeed
from dynopt_ray.errors import ClusterError, LearnerError
from dynopt_ray.online import BuildLearner

_MAX_RESTARTS = 100
_RETRY_S = 0.1


class ActorCalls:
    """Calls the methods of a learner's actor, again and again while it is being restarted.

    Args:
        actor: the handle of the actor, as Ray gives it.
        timeout_s: how long a call waits for the actor to start or restart, in seconds.

    Attributes:
        actor: the handle of the actor.
    """

    def __init__(self, actor: Any, timeout_s: float) -> None:
        self.actor = actor
        self._timeout_s = timeout_s

    def started(self) -> LearnerStatus:
        """Wait until the new actor has started, and return its status.

        Raises:
            ClusterError: the cluster has no room for it.
            LearnerError: the learner could not be built or restored.
        """
        try:
            status: LearnerStatus = ray.get(self.actor.status.remote(), timeout=self._timeout_s)
        except GetTimeoutError as error:
            ray.kill(self.actor)
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            raise ClusterError(
                f"the learner's actor did not start in {self._timeout_s:g} s; free now: "
                f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs. End other work, or "
                "reserve less"
            ) from error
        except ActorDiedError as error:
            cause = str(error).strip().splitlines()[-1]
            raise LearnerError(f"the learner could not be built or restored: {cause}") from error
        return status

    def __call__(self, call: Callable[[Any], Any]) -> Any:
        """Return the result of a call, repeating the call whenever the actor was restarted.

        The time limit holds for each restart, because an actor may come back and die again.

        Args:
            call: calls a method of the actor that it is given.

        Raises:
            LearnerError: the actor is missing for too long, or Ray has given it up.
        """
        missing_since = 0.0
        while True:
            begun = time.monotonic()
            try:
                return ray.get(call(self.actor))
            except ActorUnavailableError as error:
                # A call that ran for a while found the actor; one that fails at once did not. Count
                # from now, as it may have run for longer than `timeout_s`.
                if not missing_since or time.monotonic() - begun > _RETRY_S:
                    missing_since = time.monotonic()
                self._wait_for_restart(missing_since, error)
            except ActorDiedError as error:
                raise _dead(error) from error

    def _wait_for_restart(self, missing_since: float, error: Exception) -> None:
        """Wait until the actor answers.

        Raises:
            LearnerError: it has been missing for `timeout_s`, or Ray has given it up.
        """
        while True:
            time.sleep(_RETRY_S)
            left = missing_since + self._timeout_s - time.monotonic()
            if left <= 0:
                raise LearnerError(
                    f"the learner's actor has not come back in {self._timeout_s:g} s: {error}"
                ) from error
            try:
                ray.get(self.actor.status.remote(), timeout=left)
            except ActorDiedError as died:
                raise _dead(died) from died
            except (ActorUnavailableError, GetTimeoutError):
                continue
            return


def _dead(error: ActorDiedError) -> LearnerError:
    return LearnerError(
        f"the learner's actor is dead and will not be restarted: {error}; all events that it "
        "acknowledged are in its directory"
    )


def start_actor(
    build: BuildLearner | str,
    directory: str,
    *,
    snapshot_every: int | None,
    skip: Collection[int],
    need: ClusterNeed,
    deterministic: bool,
) -> Any:
    """Start an actor whose predictions do not wait for learning, and which restarts if it dies."""
    kind: Any = type("Learner", (LearnerActor,), {})
    for method in ("predict", "status"):
        in_group = ray.method(concurrency_group=method)
        setattr(kind, method, in_group(getattr(LearnerActor, method)))
    remote: Any = ray.remote
    actor = remote(
        **need.actor_options,
        # Ray must not repeat calls: the handle does so, with a time limit of its own.
        max_restarts=_MAX_RESTARTS,
        max_task_retries=0,
        concurrency_groups={"predict": 2, "status": 1},
    )(kind)
    return actor.remote(
        build,
        directory,
        snapshot_every=snapshot_every,
        skip=tuple(skip),
        num_threads=max(1, int(need.cpus)),
        num_gpus=need.gpus,
        deterministic=deterministic,
    )
