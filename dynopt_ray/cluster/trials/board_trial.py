"""A trial as Tune's schedulers see it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

PENDING, RUNNING, PAUSED = "PENDING", "RUNNING", "PAUSED"
ENDED = frozenset({"TERMINATED", "ERROR"})


@dataclass(frozen=True)
class StateOf:
    """Names the state of a trial after one of its measurements."""

    number: int
    report: int


class _CheckpointManager:
    """Notes the states that population-based schedulers make a trial continue from."""

    checkpoint_config = SimpleNamespace(num_to_keep=None)

    def __init__(self, trial: "BoardTrial", copies: list[tuple["BoardTrial", StateOf]]) -> None:
        self._trial = trial
        self._copies = copies

    @property
    def _latest_checkpoint_result(self) -> None:
        return None

    @_latest_checkpoint_result.setter
    def _latest_checkpoint_result(self, result: Any) -> None:
        self._copies.append((self._trial, result.checkpoint))


class BoardTrial:
    """One trial of a search.

    It has the attributes of Tune's trials that Tune's schedulers use.

    Args:
        number: its place in the order of drawing, from 0.
        config: the point that was drawn; see `Space.decode`.
        copies: gets an entry when a scheduler makes the trial continue from a state: the trial, and
            the state.

    Attributes:
        number: see above.
        config: the point; population-based schedulers change it.
        status: "PENDING", "RUNNING", "PAUSED", "TERMINATED" or "ERROR".
        report: number of its measurements.
        elapsed_s: the time that it has run for, in seconds.
        state: its latest stored state, or None.
        num_losses: how often its process was lost.
        last_result: its last measurement, for schedulers.
    """

    def __init__(
        self,
        number: int,
        config: Mapping[str, Any],
        copies: list[tuple["BoardTrial", StateOf]],
    ) -> None:
        self.number = number
        self.trial_id = f"{number:05d}"
        self.config = dict(config)
        self.status = PENDING
        self.report = 0
        self.elapsed_s = 0.0
        self.state: StateOf | None = None
        self.num_losses = 0
        self.last_result: dict[str, Any] = {}
        self.evaluated_params = dict(config)
        self.experiment_tag = self.trial_id
        self.is_saving = False
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=_CheckpointManager(self, copies))

    @property
    def checkpoint(self) -> StateOf | None:
        """The latest state."""
        return self.state

    def is_finished(self) -> bool:
        """Whether the trial has ended."""
        return self.status in ENDED

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Change the configuration."""
        self.config = copy.deepcopy(dict(config))

    def set_experiment_tag(self, tag: str) -> None:
        """Change the label that schedulers use in their own messages."""
        self.experiment_tag = tag

    def __repr__(self) -> str:
        return self.trial_id
