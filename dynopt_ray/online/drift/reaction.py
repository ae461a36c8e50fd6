"""Reactions: what a learner does when its stream drifts. No reaction resets weights."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray import plugins
from dynopt_ray.structure import Edit, Graph, Receipt


class Boosted(Protocol):
    """Learning rates that can be raised for some time."""

    boost: float
    """The factor by which every rate is multiplied."""


class LatestEvents(Protocol):
    """The latest events of a stream."""

    def latest(self, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the latest `count` events, or of all if fewer are kept."""


class ReactingLearner(Protocol):
    """The interface of a learner that its reactions may use; `OnlineLearner` provides it."""

    @property
    def model(self) -> nn.Module:
        """The network that learns."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the network."""

    @property
    def events(self) -> int:
        """The number of events that the learner has received, including quarantined ones."""

    @property
    def rates(self) -> Boosted:
        """The learning rates."""

    @property
    def memory(self) -> LatestEvents:
        """The latest events, at least as many as each reaction asks for in `Reaction.memory`."""

    @property
    def structure(self) -> Graph | None:
        """The traced network, or None if the learner was built without one."""

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take one optimizer step on a mini-batch.

        Raises:
            DataError: the network cannot be trained on the mini-batch; nothing was changed.
        """

    def resize(self, plan: Sequence[Edit]) -> Receipt:
        """Apply a plan of edits to the network and its optimizer.

        Raises:
            LearnerError: the learner was built without `structure`.
            EditError: the plan cannot be applied; nothing was changed.
        """

    def generator(self) -> torch.Generator:
        """Return a new seeded CPU generator at each call; a restored learner gets the same ones."""


class Reaction(Protocol):
    """A callable that a learner calls after each `learn`, with whether drift was detected in it.

    A reaction may change `learner.rates.boost`, train with `learner.update`, read
    `learner.memory`, or resize the network with `learner.resize`; the learner's snapshot covers
    all of these. The `state_dict` of the reaction must contain any state of its own. Random
    choices must use `learner.generator()`, so that a restored learner makes the same choices. An
    error that a reaction does not catch ends the learner. In particular, `learner.update` raises
    a `DataError` if the network cannot be trained on a mini-batch.
    """

    @property
    def memory(self) -> int:
        """The number of latest events that the learner must keep for this reaction."""

    def prepare(self, learner: ReactingLearner, /) -> None:
        """Refuse a learner that this reaction cannot serve; called once, when it is built."""

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """React to drift; if there is none, let the effect of an earlier reaction wear off."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the reaction whose `state_dict` returned `state`."""


def build_reactions(
    reactions: str | Reaction | Sequence[str | Reaction],
) -> tuple[Reaction, ...]:
    """Return one or several reactions, given as plugins' names or as objects, as a tuple.

    Raises:
        UnknownNameError: no reaction has this name.
    """
    if isinstance(reactions, str) or callable(reactions):
        reactions = (reactions,)
    return tuple(plugins.load("reactions", r)() if isinstance(r, str) else r for r in reactions)
