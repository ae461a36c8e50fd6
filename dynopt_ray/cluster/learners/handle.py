"""The driver's side of a learner in an actor: batches, waits, sends again, and never twice."""

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from torch import Tensor

from dynopt_ray.cluster.learners.actor import LearnerActor, LearnerStatus
from dynopt_ray.errors import ClusterError, LearnerError
from dynopt_ray.online import Ack, BuildLearner, Event, LearnResult, storable

Learned = Future[LearnResult | None]
"""Comes when the event is on disk and learned; None where the actor died before it told."""

_MAX_RESTARTS = 100
_RETRY_S = 0.1


@dataclass(frozen=True)
class Prediction:
    """An output, and the name under which its label may come later.

    Attributes:
        id: what `label` takes.
        output: the network's output.
    """

    id: int
    output: Tensor


class RemoteLearner:
    """A learner in an actor of its own.

    `learn` returns at once; a thread sends what has gathered in one call, because a call takes
    0.4 ms however little it carries. When the actor's process dies, Ray starts it again, it
    restores itself from its directory, and what it had not acknowledged is sent again: every
    event has its effect exactly once. One handle at a time may learn.

    Args:
        build: makes the learner, the same one every time; or its path `module:attribute`.
        directory: of its snapshot and journal; see `LearnerActor`.
        num_cpus: CPUs of the actor; torch computes with as many threads, at least one.
        num_gpus: GPUs of the actor; may be a fraction.
        snapshot_every: events between snapshots.
        max_pending: events that may wait for their acknowledgement. With so many, `learn` waits.
        max_unlabelled: predictions kept for `label`; the oldest are forgotten.
        batch_size: the most events in one call.
        timeout_s: how long `learn` waits for room, and anything for an actor that starts.

    Raises:
        ClusterError: the cluster has no room for the actor.
        LearnerError: the learner could not be built or restored; says why.

    Example:
        >>> with session(), RemoteLearner(build, "runs/stream") as learner:  # doctest: +SKIP
        ...     prediction = learner.predict(x)
        ...     learner.label(prediction.id, y)
    """

    def __init__(
        self,
        build: BuildLearner | str,
        directory: str | os.PathLike[str],
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        snapshot_every: int = 1_000,
        max_pending: int = 10_000,
        max_unlabelled: int = 10_000,
        batch_size: int = 256,
        timeout_s: float = 60.0,
    ) -> None:
        for name, value in (("max_pending", max_pending), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"RemoteLearner: {name} is {value}; it must be at least 1")
        self._max_pending = max_pending
        self._max_unlabelled = max_unlabelled
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._actor = _start_actor(
            build,
            os.path.abspath(directory),
            snapshot_every=snapshot_every,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        self._next = self._started().sequence + 1
        self._changed = threading.Condition()
        self._pending: deque[tuple[int, Event, Learned]] = deque()
        self._unlabelled: OrderedDict[int, Any] = OrderedDict()
        self._num_predictions = 0
        self._failure: Exception | None = None
        self._closing = False
        self._sender = threading.Thread(target=self._send, name="dynopt-learner", daemon=True)
        self._sender.start()

    def learn(self, x: Any, y: Any) -> Learned:
        """Send one event or mini-batch to be learned.

        Returns:
            A future; it need not be looked at.

        Raises:
            DataError: x or y is not an array of numbers that a journal can keep.
            LearnerError: no room within `timeout_s`, or the learner has failed.
        """
        event = (storable("x", x), storable("y", y))
        with self._changed:
            has_room = self._changed.wait_for(
                lambda: len(self._pending) < self._max_pending or self._is_over(),
                timeout=self._timeout_s,
            )
            self._refuse_if_over()
            if not has_room:
                raise LearnerError(
                    f"{self._max_pending} events wait to be learned and none was in "
                    f"{self._timeout_s:g} s; send more slowly, or use mini-batches"
                )
            learned: Learned = Future()
            # It cannot be cancelled: the event may be on its way.
            learned.set_running_or_notify_cancel()
            self._pending.append((self._next, event, learned))
            self._next += 1
            self._changed.notify_all()
        return learned

    def predict(self, x: Any) -> Prediction:
        """The output for one event or mini-batch, from the network as last published.

        It does not wait for learning. The event is kept for `label`.

        Raises:
            DataError: x is not an array of numbers that a journal can keep, or not of the
                stream's shape.
            LearnerError: the learner has failed.
        """
        array = storable("x", x)
        output = self._call(lambda: self._actor.predict.remote(array))
        with self._changed:
            self._num_predictions += 1
            self._keep(self._num_predictions, array)
            return Prediction(self._num_predictions, output)

    def label(self, prediction_id: int, y: Any) -> Learned:
        """Learn from an event that was predicted earlier, now that its label is known.

        Raises:
            DataError: y is not an array of numbers that a journal can keep.
            LearnerError: no such prediction waits for a label, no room within `timeout_s`, or the
                learner has failed. In all but the first case it goes on waiting for its label.
        """
        with self._changed:
            x = self._unlabelled.pop(prediction_id, None)
        if x is None:
            raise LearnerError(
                f"prediction {prediction_id} does not wait for a label: it was labelled, is "
                f"older than the latest {self._max_unlabelled}, or is of another handle"
            )
        try:
            return self.learn(x, y)
        except BaseException:
            with self._changed:
                self._keep(prediction_id, x)
            raise

    def flush(self) -> None:
        """Wait until everything sent is on disk and learned.

        Raises:
            LearnerError: the learner has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or self._failure is not None)
            if self._failure is not None:
                self._refuse_if_over()

    def snapshot(self) -> None:
        """Wait as `flush` does, then write the whole state to the directory.

        Raises:
            CheckpointError: it could not be written; the one before is valid.
        """
        self.flush()
        self._call(lambda: self._actor.snapshot.remote())

    def status(self) -> LearnerStatus:
        """How the learner is now.

        It does not wait for learning: of a call under way, it counts the events learned so far.
        """
        status: LearnerStatus = self._call(lambda: self._actor.status.remote())
        return status

    def close(self) -> None:
        """Learn what was sent, write a snapshot, and end the actor."""
        if self._closing:
            return
        try:
            if self._failure is None:
                self.flush()
                self._call(lambda: self._actor.close.remote())
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._sender.join()
            ray.kill(self._actor)

    def __enter__(self) -> "RemoteLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, prediction_id: int, x: Any) -> None:
        """Keep an event for its label; the oldest make room."""
        self._unlabelled[prediction_id] = x
        while len(self._unlabelled) > self._max_unlabelled:
            self._unlabelled.popitem(last=False)

    def _started(self) -> LearnerStatus:
        """The status of an actor that has just been made, or why it could not be."""
        try:
            status: LearnerStatus = ray.get(self._actor.status.remote(), timeout=self._timeout_s)
        except GetTimeoutError as error:
            ray.kill(self._actor)
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            raise ClusterError(
                f"the learner's actor did not start in {self._timeout_s:g} s; free now: "
                f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs. End something, or ask "
                "for less"
            ) from error
        except ActorDiedError as error:
            cause = str(error).strip().splitlines()[-1]
            raise LearnerError(f"the learner could not be built or restored: {cause}") from error
        return status

    def _call(self, call: Callable[[], Any]) -> Any:
        """The result of a call that may be repeated, across restarts of the actor."""
        missing_since: float | None = None
        while True:
            try:
                return ray.get(call())
            except ActorUnavailableError as error:
                # Only now: before, the call may have run for longer than one waits for an actor.
                missing_since = missing_since or time.monotonic()
                if time.monotonic() - missing_since > self._timeout_s:
                    raise LearnerError(
                        f"the learner's actor has not come back in {self._timeout_s:g} s: {error}"
                    ) from error
                time.sleep(_RETRY_S)
            except ActorDiedError as error:
                raise LearnerError(
                    f"the learner's actor is dead and will not be restarted: {error}; what it "
                    "acknowledged is in its directory"
                ) from error

    def _send(self) -> None:
        """The sender thread: one call at a time, so that events arrive in order."""
        while batch := self._take():
            first = batch[0][0]
            events = [event for _, event, _ in batch]
            try:
                ack: Ack = self._call(lambda: self._actor.learn.remote(first, events))  # noqa: B023
            except Exception as error:
                self._fail(error)
                return
            for (_, _, learned), result in zip(batch, ack.results, strict=True):
                if isinstance(result, Exception):
                    learned.set_exception(result)
                else:
                    learned.set_result(result)
            with self._changed:
                for _ in batch:
                    self._pending.popleft()
                self._changed.notify_all()

    def _take(self) -> list[tuple[int, Event, Learned]]:
        """The next batch, when there is one; nothing when the handle closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            num_events = min(len(self._pending), self._batch_size)
            return [self._pending[index] for index in range(num_events)]

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            waiting = [learned for _, _, learned in self._pending]
            self._pending.clear()
            self._changed.notify_all()
        for learned in waiting:
            learned.set_exception(error)

    def _is_over(self) -> bool:
        return self._closing or self._failure is not None

    def _refuse_if_over(self) -> None:
        if self._closing:
            raise LearnerError("this learner is closed; open its directory again to go on")
        if self._failure is not None:
            raise LearnerError(
                f"the learner has failed and takes no more events: {self._failure}; what it "
                "acknowledged is in its directory, open it again when the cause is gone"
            ) from self._failure


def _start_actor(
    build: BuildLearner | str,
    directory: str,
    *,
    snapshot_every: int,
    num_cpus: float,
    num_gpus: float,
) -> Any:
    """An actor in which predictions do not wait for learning, restarted with its state."""
    kind: Any = type("Learner", (LearnerActor,), {})
    for method in ("predict", "status"):
        in_group = ray.method(concurrency_group=method)
        setattr(kind, method, in_group(getattr(LearnerActor, method)))
    remote: Any = ray.remote
    actor = remote(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        # A call that died with the actor may have been executed; the sequence number decides.
        max_restarts=_MAX_RESTARTS,
        max_task_retries=0,
        concurrency_groups={"predict": 2, "status": 1},
    )(kind)
    return actor.remote(
        build, directory, snapshot_every=snapshot_every, num_threads=max(1, int(num_cpus))
    )
