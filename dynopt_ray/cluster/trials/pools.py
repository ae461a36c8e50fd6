"""Pools of slots, in which trials run: in this process, or in actors on a cluster."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from dynopt_ray.cluster.resources import use_resources
from dynopt_ray.cluster.trials.messages import TrialCommand, TrialEvent
from dynopt_ray.cluster.trials.trial import Trial
from dynopt_ray.cluster.trials.worker import TrialWorker, WorkerConfig
from dynopt_ray.devices import Determinism, gpus_granted
from dynopt_ray.errors import SearchError

_RESIZE_S = 2.0
_FAILED_STARTS = 3
_GRACE_S = 5.0
_NODE_DIED = "node has died"  # part of Ray's message about an actor


@dataclass(eq=False)
class Slot:
    """Room for one or more trials.

    Attributes:
        members: numbers of the trials that run here.
        deadline: when the slot is given up if it has not answered; compare with `time.monotonic`.
        where: the machine and the process.
        round: the round of starts that it belongs to; see `ActorPool`.
    """

    members: set[int] = field(default_factory=set)
    deadline: float = float("inf")
    where: str = ""
    round: int = 0


@dataclass(frozen=True)
class SlotLost:
    """The process of a slot is gone.

    Attributes:
        cause: why.
        over_time: whether it was ended because it did not answer in time.
    """

    cause: str
    over_time: bool = False


class SlotPool(Protocol):
    """The slots of a search."""

    def idle(self, num_left: int) -> list[Slot]:
        """Return the slots that wait for commands. At most `num_left` slots are needed."""

    def send(self, slot: Slot, commands: Sequence[TrialCommand]) -> None:
        """Send commands to an idle slot."""

    def wait(self) -> list[tuple[Slot, list[TrialEvent] | SlotLost]]:
        """Wait until a slot has answered or is lost, or for a moment; return the answers."""

    def close(self) -> None:
        """Give up all slots."""


class LocalPool:
    """One slot in this process, which runs a trial while `wait` is called.

    Args:
        trial: runs one configuration.
        config: what else workers need to know.
    """

    def __init__(self, trial: Trial, config: WorkerConfig) -> None:
        self._worker = TrialWorker(trial, config)
        self._config = config
        self._slot = Slot(where=self._worker.where())
        self._commands: Sequence[TrialCommand] | None = None

    def idle(self, num_left: int) -> list[Slot]:
        """See `SlotPool`."""
        return [self._slot] if num_left and self._commands is None else []

    def send(self, slot: Slot, commands: Sequence[TrialCommand]) -> None:
        """See `SlotPool`."""
        del slot
        self._commands = commands

    def wait(self) -> list[tuple[Slot, list[TrialEvent] | SlotLost]]:
        """See `SlotPool`."""
        commands, self._commands = self._commands, None
        if commands is None:
            return []
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, int(self._config.cpus)))
        granted = gpus_granted(self._config.gpus > 0)
        try:
            with granted, Determinism(self._config.deterministic):
                return [(self._slot, self._worker.advance(commands))]
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """See `SlotPool`."""


class ActorPool:
    """Slots in actors, each of which runs many trials, one after the other.

    Actors are started as long as there is room, also on nodes that join later. A slot whose actor
    or node dies is replaced.

    Args:
        trial: runs one configuration. It is sent to the cluster's object store once.
        config: what else workers need to know.
        resources: options of actors, such as `num_cpus`, `num_gpus` and `accelerator_type`.
        room: returns the number of trials for which the cluster has room now.
    """

    def __init__(
        self,
        trial: Trial,
        config: WorkerConfig,
        resources: Mapping[str, Any],
        room: Callable[[], int],
    ) -> None:
        import ray

        self._trial = ray.put(trial)
        self._config = ray.put(config)
        self._actor: Any = ray.remote(_TrialActor).options(
            **resources, max_restarts=0, max_task_retries=0
        )
        self._room = room
        self._actors: dict[Slot, Any] = {}
        self._calls: dict[Any, Slot] = {}
        self._starting: set[Slot] = set()
        self._resized_at = -float("inf")
        self._round = 0  # of starts
        self._failed_rounds: set[int] = set()

    def idle(self, num_left: int) -> list[Slot]:
        """See `SlotPool`."""
        self._resize(num_left)
        called = {*self._calls.values()}
        return [slot for slot in self._actors if slot not in called]

    def send(self, slot: Slot, commands: Sequence[TrialCommand]) -> None:
        """See `SlotPool`."""
        self._calls[self._actors[slot].advance.remote(commands)] = slot

    def wait(self) -> list[tuple[Slot, list[TrialEvent] | SlotLost]]:
        """See `SlotPool`."""
        import ray

        if not self._calls:
            time.sleep(0.02)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=self._patience())
        if ready:  # take what else has arrived by now
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        answers: list[tuple[Slot, list[TrialEvent] | SlotLost]] = []
        for call in ready:
            slot = self._calls.pop(call)
            answer = self._answer(call, slot)
            if answer is not None:
                answers.append((slot, answer))
        now = time.monotonic()
        for call, slot in [*self._calls.items()]:
            if now > slot.deadline + _GRACE_S:
                del self._calls[call]
                self._give_up(slot)
                answers.append((slot, SlotLost("it did not answer in time", over_time=True)))
        return answers

    def close(self) -> None:
        """See `SlotPool`."""
        for slot in [*self._actors]:
            self._give_up(slot)
        self._calls.clear()

    def _patience(self) -> float:
        now = time.monotonic()
        first = min((slot.deadline + _GRACE_S for slot in self._calls.values()), default=now)
        return max(0.05, min(_RESIZE_S, first - now))

    def _resize(self, num_left: int) -> None:
        now = time.monotonic()
        if now - self._resized_at < _RESIZE_S and len(self._actors) >= 1:
            return
        self._resized_at = now
        self._round += 1
        for _ in range(len(self._actors), min(num_left, self._room())):
            slot = Slot(round=self._round)
            actor = self._actor.remote(self._trial, self._config)
            self._actors[slot] = actor
            self._starting.add(slot)
            self._calls[actor.where.remote()] = slot

    def _answer(self, call: Any, slot: Slot) -> list[TrialEvent] | SlotLost | None:
        """Return the answer of a slot; None if it has just become ready, or failed to start."""
        import ray

        try:
            given = ray.get(call)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            self._give_up(slot)
            if slot not in self._starting:
                return SlotLost(_first_line(error))
            self._starting.discard(slot)
            self._resized_at = -float("inf")
            if _NODE_DIED not in str(error):
                # Whatever hinders one process from starting hinders all of a round.
                self._failed_rounds.add(slot.round)
            if len(self._failed_rounds) >= _FAILED_STARTS:
                raise SearchError(
                    f"processes for trials could not be started, {_FAILED_STARTS} times in a row: "
                    f"{error}"
                ) from error
            return None
        if slot in self._starting:
            self._starting.discard(slot)
            self._failed_rounds.clear()
            slot.where = given
            return None
        events: list[TrialEvent] = given
        return events

    def _give_up(self, slot: Slot) -> None:
        import ray

        ray.kill(self._actors.pop(slot))


class _TrialActor(TrialWorker):
    """A worker in a process of its own."""

    def __init__(self, trial: Trial, config: WorkerConfig) -> None:
        use_resources(config.cpus, config.gpus)
        Determinism(config.deterministic).begin()
        super().__init__(trial, config)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(":")
