"""Where the states and the networks of trials are stored."""

import re
from collections.abc import Callable
from typing import Any

from dynopt_ray.errors import CheckpointError
from dynopt_ray.journals import Store
from dynopt_ray.storage import packed_state, unpacked_state

_KEPT_STATES = 2
_NETWORK = re.compile(r"trials/(\d+)/network\.safetensors")
_STATE = re.compile(r"state-(\d+)\.safetensors")


class TrialFiles:
    """The states and networks of the trials of one search, in a directory or under a URI.

    The state of a trial after a measurement is a file of its own, trials/00012/state-00003. The
    last two are kept: if the driver dies between a measurement and the record of it, the one before
    is needed.

    Args:
        store: where the files are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def keep_state(self, number: int, report: int, state: bytes) -> None:
        """Store the state of a trial after a measurement, in the form of `packed`.

        Raises:
            CheckpointError: it could not be stored; the states before are still valid.
        """
        self.store.put(_state_name(number, report), state)
        for old in self._reports(number)[:-_KEPT_STATES]:
            self.store.delete(_state_name(number, old))

    def state(self, number: int, up_to: int) -> tuple[int, dict[str, Any]] | None:
        """Return the latest state of a trial that is no later than a measurement.

        Returns:
            The number of measurements before it, and the state; None if there is none.

        Raises:
            CheckpointError: the file of the state is damaged.
        """
        report = self.latest(number, up_to)
        if report is None:
            return None
        name = _state_name(number, report)
        content = self.store.get(name)
        return report, unpacked_state(content, kind="trial", name=f"{self.store.name}/{name}")

    def latest(self, number: int, up_to: int) -> int | None:
        """Return the number of the latest state of a trial up to a measurement, or None."""
        return max((r for r in self._reports(number) if r <= up_to), default=None)

    def copy_state(self, source: int, source_report: int, number: int, report: int) -> None:
        """Make the state of one trial the state of another, as if from its own last measurement.

        Does nothing if this was done before, so a search that continues may ask again.

        Raises:
            CheckpointError: the source has no such state.
        """
        if report in self._reports(number) and self._is_copy(number, report):
            return
        if source_report not in self._reports(source):
            raise CheckpointError(
                f"trial {source} has no state after its measurement {source_report}, which trial "
                f"{number} should continue from"
            )
        content = self.store.get(_state_name(source, source_report))
        self.store.put(_state_name(number, report), content)
        self.store.put(_copy_name(number, report), b"")

    def _is_copy(self, number: int, report: int) -> bool:
        return _copy_name(number, report) in self.store.names(_directory(number))

    def forget_states(self, number: int) -> None:
        """Delete the states of a trial that has ended."""
        for name in self.store.names(_directory(number)):
            if not name.endswith("/network.safetensors"):
                self.store.delete(name)

    def clear(self, keeps: Callable[[int], bool]) -> None:
        """Delete what is left of trials when all have ended.

        A trial may have stored another state while a decision about a different trial ended it, and
        a driver may have died between the record of an end and the deletion.

        Args:
            keeps: number -> whether the network of this trial is kept.
        """
        for name in self.store.names_below("trials"):
            found = _NETWORK.fullmatch(name)
            if found is None or not keeps(int(found[1])):
                self.store.delete(name)

    def keep_network(self, number: int, network: bytes) -> None:
        """Store the network of a trial.

        Raises:
            CheckpointError: it could not be stored.
        """
        self.store.put(_network_name(number), network)

    def network(self, number: int) -> bytes | None:
        """Return the network of a trial, or None if it is not stored."""
        name = _network_name(number)
        return self.store.get(name) if name in self.store.names(_directory(number)) else None

    def forget_network(self, number: int) -> None:
        """Delete the network of a trial."""
        self.store.delete(_network_name(number))

    def _reports(self, number: int) -> list[int]:
        """Return after which measurements the states were taken, in increasing order."""
        found = (_STATE.search(name) for name in self.store.names(_directory(number)))
        return sorted(int(match[1]) for match in found if match)


def packed(state: dict[str, Any]) -> bytes:
    """Return the content of the file of a trial's state.

    Raises:
        CheckpointError: the state holds something else than numbers, texts, lists, dicts and
            tensors.
    """
    return packed_state(state, kind="trial")


def _directory(number: int) -> str:
    return f"trials/{number:05d}"


def _state_name(number: int, report: int) -> str:
    return f"{_directory(number)}/state-{report:05d}.safetensors"


def _copy_name(number: int, report: int) -> str:
    return f"{_directory(number)}/copied-{report:05d}"


def _network_name(number: int) -> str:
    return f"{_directory(number)}/network.safetensors"
