"""Reactions: what a learner does when its stream drifts. None of them resets weights."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray import plugins
from dynopt_ray.structure import Edit, Graph, Receipt


class Boosted(Protocol):
    """Learning rates that can be raised for a while."""

    boost: float
    """What the rate is multiplied with."""


class LatestEvents(Protocol):
    """The latest events of a stream."""

    def latest(self, count: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the last `count` events, or of as many as are kept."""


class ReactingLearner(Protocol):
    """What a reaction may use of its learner; `OnlineLearner` provides it."""

    @property
    def model(self) -> nn.Module:
        """Its network."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer over its network."""

    @property
    def events(self) -> int:
        """How many events it has learned from."""

    @property
    def rates(self) -> Boosted:
        """Its learning rates."""

    @property
    def memory(self) -> LatestEvents:
        """The latest events, as many as its reactions asked for."""

    @property
    def structure(self) -> Graph | None:
        """Its traced network, if it was built with one."""

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take one optimizer step on a mini-batch.

        Raises:
            DataError: the network cannot be trained on it; nothing was changed.
        """

    def resize(self, plan: Sequence[Edit]) -> Receipt:
        """Carry out a plan of edits on its network and optimizer.

        Raises:
            LearnerError: it was built without `structure`.
            EditError: the plan cannot be carried out; nothing was changed.
        """

    def generator(self) -> torch.Generator:
        """A seeded generator on the CPU, a new one at each call, the same after a restore."""


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

    def prepare(self, learner: ReactingLearner, /) -> None:
        """Called once, when the learner is built: refuse one that this reaction cannot serve."""

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """React, or let an earlier reaction wear off."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly as the reaction that gave `state` would."""


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
