"""The driver's handle for a learner in an actor, which sends every event until it is acknowledged.

The handle gives every event the next sequence number and appends it to a queue. A sender thread
sends the front of the queue in batches, one call at a time, so events arrive in order. The actor
writes a batch to the journal on disk, learns it, and then acknowledges it. Only then do its events
leave the queue.

If the actor's process dies during a call, Ray starts the actor again, and the actor restores its
learner from snapshot and journal. The handle cannot know whether the batch reached the journal
before the process died. So it sends the same batch with the same sequence numbers again, and
`DurableLearner.learn` ignores numbers that it has already learned and refuses gaps. No event is
lost, because unacknowledged ones are sent again. No event is learned twice, because repeated ones
are recognised. So each event takes effect exactly once.

A new handle continues with the number after the last one that the actor has learned. Two handles
at the same time would use the same numbers for different events. To prevent this, the actor of the
first one locks the learner's directory.
"""

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray
from torch import Tensor

from dynopt_ray.cluster.learners.actor import LearnerStatus
from dynopt_ray.cluster.learners.buffers import (
    Learned,
    PendingEvent,
    PendingEvents,
    UnlabelledEvents,
    at_least,
)
from dynopt_ray.cluster.learners.calls import ActorCalls, start_actor
from dynopt_ray.cluster.sessions import ClusterNeed
from dynopt_ray.errors import LearnerError
from dynopt_ray.online import Ack, BuildLearner, storable, stored_bytes

_CALL_BYTES = 2**26


@dataclass(frozen=True)
class Prediction:
    """The output for an event, with an id for labelling the event later.

    Attributes:
        id: the id to pass to `RemoteLearner.label`.
        output: the network's output.
    """

    id: int
    output: Tensor


class RemoteLearner:
    """A learner that runs in a Ray actor of its own.

    `learn` returns at once unless `max_pending` events wait. A thread sends the waiting events
    together in one call, because a call takes 0.4 ms even if it carries a single event. If the
    actor's process dies, Ray starts it again, it restores itself from its directory, and the
    events that it had not acknowledged are sent again. Every event takes effect exactly once.
    Only one handle at a time may learn.

    Args:
        build: builds the learner; or its path `module:attribute`. Every call must build the same
            learner.
        directory: directory of the learner's snapshot and journal; see `LearnerActor`.
        num_cpus: CPUs reserved for the actor. Torch uses as many threads, at least one.
        num_gpus: GPUs reserved for the actor: up to 1, or a whole number. With 0 it sees none.
        deterministic: whether a GPU repeats events bit for bit; see `devices.Determinism`.
        snapshot_every: number of events between snapshots; None for snapshots only when
            `snapshot` is called. See `DurableLearner`.
        next_event: sequence number of the first event that is sent, from 1. Default: the one after
            the last that the learner has. A smaller number sends events again, for their results.
        max_pending: maximum number of events that wait for their acknowledgement. At this limit,
            `learn` waits for room.
        max_unlabelled: number of predictions kept for `label`; the oldest are forgotten.
        max_bytes: maximum size of the events that wait for their acknowledgement, and of those
            kept for `label`: of each of the two. A single event may be larger.
        batch_size: maximum number of events in one call; a call carries at most 64 MiB unless a
            single event is larger.
        skip: sequence numbers of events that are not learned; see `DurableLearner`.
        timeout_s: seconds that `learn` waits for room, and every call for the actor to (re)start.

    Raises:
        ValueError: a number is out of range; `num_gpus` above 1 must be whole.
        ClusterError: the cluster has no room for the actor.
        LearnerError: the learner could not be built or restored; the message says why.

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
        deterministic: bool = False,
        snapshot_every: int | None = 1_000,
        next_event: int | None = None,
        max_pending: int = 10_000,
        max_unlabelled: int = 10_000,
        max_bytes: int = 2**28,
        batch_size: int = 256,
        skip: Collection[int] = (),
        timeout_s: float = 60.0,
    ) -> None:
        at_least(1, max_pending=max_pending, max_bytes=max_bytes, batch_size=batch_size)
        if next_event is not None:
            at_least(1, next_event=next_event)
        at_least(0, max_unlabelled=max_unlabelled)
        need = ClusterNeed(cpus=num_cpus, gpus=num_gpus)
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        actor = start_actor(
            build,
            os.path.abspath(directory),
            snapshot_every=snapshot_every,
            skip=skip,
            need=need,
            deterministic=deterministic,
        )
        self._call = ActorCalls(actor, timeout_s)
        after_last = self._call.started().sequence + 1
        self._next = after_last if next_event is None else next_event
        self._changed = threading.Condition()
        self._pending = PendingEvents(max_events=max_pending, max_bytes=max_bytes)
        self._unlabelled = UnlabelledEvents(max_events=max_unlabelled, max_bytes=max_bytes)
        self._num_predictions = 0
        self._failure: Exception | None = None
        self._closing = False
        self._sender = threading.Thread(target=self._send, name="dynopt-learner", daemon=True)
        self._sender.start()

    def learn(self, x: Any, y: Any) -> Learned:
        """Send one event or mini-batch to be learned.

        Returns:
            A future of the result, which may be ignored.

        Raises:
            DataError: x or y is not an array of numbers, or cannot be kept in a journal.
            LearnerError: there was no room within `timeout_s`, the learner has failed, or the
                handle is closed.
        """
        event = (storable("x", x), storable("y", y))
        num_bytes = stored_bytes(*event)
        with self._changed:
            has_room = self._changed.wait_for(
                lambda: self._pending.has_room(num_bytes) or self._is_over(),
                timeout=self._timeout_s,
            )
            self._refuse_if_over()
            if not has_room:
                raise LearnerError(
                    f"{len(self._pending)} events wait to be learned, and none was learned within "
                    f"{self._timeout_s:g} s; send more slowly, or use mini-batches"
                )
            learned = self._pending.add(self._next, event)
            self._next += 1
            self._changed.notify_all()
        return learned

    def predict(self, x: Any) -> Prediction:
        """Return the output for one event or mini-batch, and keep the event for `label`.

        Predictions do not wait for learning. They come from the network as it was after the
        latest batch of events that was learned completely.

        Raises:
            DataError: x is not an array of numbers, its type cannot be kept in a journal, or its
                shape is not that of the stream.
            LearnerError: the learner has failed.
        """
        array = storable("x", x)
        output = self._call(lambda actor: actor.predict.remote(array))
        with self._changed:
            self._num_predictions += 1
            self._unlabelled.add(self._num_predictions, array)
            return Prediction(self._num_predictions, output)

    def label(self, prediction_id: int, y: Any) -> Learned:
        """Learn from an event that was predicted earlier, now that its label is known.

        Raises:
            DataError: y is not an array of numbers, or its type cannot be kept in a journal.
            LearnerError: no prediction with this id waits for a label, there was no room within
                `timeout_s`, the learner has failed, or the handle is closed. In all but the first
                case, the prediction still waits for its label.
        """
        with self._changed:
            x = self._unlabelled.take(prediction_id)
        if x is None:
            raise LearnerError(
                f"prediction {prediction_id} does not wait for a label: it was labelled already, "
                "is too old (see max_unlabelled and max_bytes), or belongs to another handle"
            )
        try:
            return self.learn(x, y)
        except BaseException:
            with self._changed:
                self._unlabelled.add(prediction_id, x)
            raise

    def flush(self) -> None:
        """Wait until all events are on disk and learned.

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
            CheckpointError: the snapshot could not be written; the previous one is still valid.
        """
        self.flush()
        self._call(lambda actor: actor.snapshot.remote())

    def status(self) -> LearnerStatus:
        """Return the present status of the learner.

        This does not wait for learning. If a batch is being learned, the status includes the
        events of the batch that are learned so far.
        """
        status: LearnerStatus = self._call(lambda actor: actor.status.remote())
        return status

    def close(self) -> None:
        """Wait until all events are learned, write a snapshot, and end the actor.

        There is no snapshot if `snapshot_every` is None; all events are on disk without it.
        """
        if self._closing:
            return
        try:
            if self._failure is None:
                self.flush()
                self._call(lambda actor: actor.close.remote())
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._sender.join()
            ray.kill(self._call.actor)

    def __enter__(self) -> "RemoteLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self) -> None:
        """Send until the handle closes: one call at a time, so that events stay in order."""
        while batch := self._take():
            first = batch[0].sequence
            events = [one.event for one in batch]
            try:
                ack: Ack = self._call(lambda actor: actor.learn.remote(first, events))  # noqa: B023
            except Exception as error:
                self._fail(error)
                return
            for one, result in zip(batch, ack.results, strict=True):
                if isinstance(result, Exception):
                    one.learned.set_exception(result)
                else:
                    one.learned.set_result(result)
            with self._changed:
                self._pending.drop(len(batch))
                self._changed.notify_all()

    def _take(self) -> list[PendingEvent]:
        """Wait for events, and return the next batch. It is empty when the handle closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            return self._pending.first(self._batch_size, _CALL_BYTES)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            waiting = self._pending.drop(len(self._pending))
            self._changed.notify_all()
        for one in waiting:
            one.learned.set_exception(error)

    def _is_over(self) -> bool:
        return self._closing or self._failure is not None

    def _refuse_if_over(self) -> None:
        if self._closing:
            raise LearnerError(
                "this learner is closed; make a new RemoteLearner on its directory to continue"
            )
        if self._failure is not None:
            raise LearnerError(
                f"the learner has failed and takes no more events: {self._failure}; all events "
                "that it acknowledged are in its directory. Remove the cause, then make a new "
                "RemoteLearner on this directory"
            ) from self._failure
