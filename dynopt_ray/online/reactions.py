"""Reactions: what a learner does when its stream drifts. None of them resets weights."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dynopt_ray import plugins
from dynopt_ray.errors import DataError, LearnerError
from dynopt_ray.structure import Grow

if TYPE_CHECKING:
    from dynopt_ray.online.learner import OnlineLearner


class Reaction(Protocol):
    """Called after every call of `learn`, with whether drift was detected in it.

    A reaction may change `learner.rates.boost`, train with `learner.update`, read
    `learner.memory`, or resize the network with `learner.resize`; the learner's snapshot covers
    all of these. State of its own belongs into its `state_dict`. Random choices take
    `learner.generator()`, so that a restored learner makes the same ones. An error that leaves a
    reaction ends the learner: `learner.update` raises a `DataError` where the network cannot be
    trained on a mini-batch.
    """

    @property
    def memory(self) -> int:
        """How many of the latest events the learner keeps for this reaction."""

    def prepare(self, learner: "OnlineLearner", /) -> None:
        """Called once, when the learner is built: refuse one that this reaction cannot serve."""

    def __call__(self, learner: "OnlineLearner", *, drift: bool) -> None:
        """React, or let an earlier reaction wear off."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly as the reaction that gave `state` would."""


class RaiseRate:
    """Raises the learning rate on drift, then lets it fall back.

    n events after the drift the rate is multiplied with 1 + (factor − 1)·2^(−n / half_life);
    the boost ends when it is below 1.01.

    Args:
        factor: the boost at the drift, > 1.
        half_life: events in which the excess of the boost halves, >= 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, *, factor: float = 4.0, half_life: int = 50) -> None:
        if not factor > 1:
            raise ValueError(f"RaiseRate: factor is {factor}; it must be > 1 to raise the rate")
        if half_life < 1:
            raise ValueError(f"RaiseRate: half_life is {half_life} events; it must be >= 1")
        self._factor = factor
        self._half_life = half_life
        self._since: int | None = None

    @property
    def memory(self) -> int:
        """No events."""
        return 0

    def prepare(self, _learner: "OnlineLearner", /) -> None:
        """Any learner will do."""

    def __call__(self, learner: "OnlineLearner", *, drift: bool) -> None:
        """Start the boost on drift; set what is left of it otherwise."""
        if drift:
            self._since = learner.events
        if self._since is None:
            return
        age = learner.events - self._since
        boost = 1 + (self._factor - 1) * 2 ** (-age / self._half_life)
        if boost < 1.01:
            boost, self._since = 1.0, None
        learner.rates.boost = boost

    def state_dict(self) -> dict[str, Any]:
        """The event at which the boost began."""
        return {"since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace it."""
        self._since = state["since"]


class Replay:
    """Trains on the latest events once more when the stream drifts.

    A mini-batch that the network cannot be trained on (one event through BatchNorm) is left out.

    Args:
        window: how many of the latest events are replayed. A detector needs some tens of
            events to notice a drift, so the latest ones are of the new kind.
        passes: how often each is replayed.
        batch_size: events per update.

    Raises:
        ValueError: an argument below 1.
    """

    def __init__(self, *, window: int = 64, passes: int = 2, batch_size: int = 16) -> None:
        for name, value in (("window", window), ("passes", passes), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"Replay: {name} is {value}; it must be at least 1")
        self._window = window
        self._passes = passes
        self._batch_size = batch_size

    @property
    def memory(self) -> int:
        """The events to replay."""
        return self._window

    def prepare(self, _learner: "OnlineLearner", /) -> None:
        """Any learner will do."""

    def __call__(self, learner: "OnlineLearner", *, drift: bool) -> None:
        """Replay on drift."""
        if not drift:
            return
        x, y = learner.memory.latest(self._window)
        for _ in range(self._passes):
            order = torch.randperm(len(x), generator=learner.generator()).to(x.device)
            for rows in torch.split(order, self._batch_size):
                with suppress(DataError):
                    learner.update(x[rows], y[rows])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is replayed belongs to the learner."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Widen:
    """Grows every layer of the network when the stream drifts, without changing its output.

    Groups that cannot grow exactly (a LayerNorm over their own width) keep theirs. The new
    units start as fresh ones do; what was learned stays, and so does the optimizer's state.

    Args:
        fraction: units added per drift, relative to the width a group began with, > 0.
        most: no group becomes wider than this many times the width it began with, > 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, *, fraction: float = 0.25, most: float = 4.0) -> None:
        if not fraction > 0:
            raise ValueError(f"Widen: fraction is {fraction}; it must be > 0 to add units")
        if not most > 1:
            raise ValueError(f"Widen: most is {most}; it must be > 1 to leave room")
        self._fraction = fraction
        self._most = most
        self._first_widths: dict[str, int] = {}

    @property
    def memory(self) -> int:
        """No events."""
        return 0

    def prepare(self, learner: "OnlineLearner", /) -> None:
        """Note the widths to begin with.

        Raises:
            LearnerError: the learner does not know its network's structure, or nothing in it
                can grow exactly.
        """
        if learner.structure is None or not any(g.exact_growth for g in learner.structure.groups):
            raise LearnerError(
                "the reaction 'grow' needs a network whose widths it can change; build the "
                "learner with structure=trace(model, example_inputs)"
            )
        self._first_widths = learner.structure.widths

    def __call__(self, learner: "OnlineLearner", *, drift: bool) -> None:
        """Grow on drift, as far as there is room."""
        if not drift or learner.structure is None:
            return
        plan = []
        for group in learner.structure.groups:
            first = self._first_widths[group.name]
            units = max(1, round(self._fraction * first / group.step)) * group.step
            if group.exact_growth and group.width + units <= self._most * first:
                plan.append(Grow(group.name, units=units))
        if plan:
            learner.resize(plan)
            learner.structure.commit()  # a stream has no end, and receipts hold memory

    def state_dict(self) -> dict[str, Any]:
        """The widths to begin with."""
        return {"first_widths": dict(self._first_widths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace them."""
        self._first_widths = dict(state["first_widths"])


def build_reactions(
    reactions: str | Reaction | Sequence[str | Reaction],
) -> tuple[Reaction, ...]:
    """Reactions from plugins' names or as objects, one or several.

    Raises:
        UnknownNameError: no reaction of this name.
    """
    if isinstance(reactions, str) or callable(reactions):
        reactions = (reactions,)
    return tuple(plugins.load("reactions", r)() if isinstance(r, str) else r for r in reactions)
