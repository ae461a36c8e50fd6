"""A reaction that grows the network after drift."""

from typing import Any

from dynopt_ray.errors import CheckpointError, LearnerError
from dynopt_ray.online.drift.reaction import ReactingLearner
from dynopt_ray.structure import Grow


class Widen:
    """Grows every width group when the stream drifts, without changing the network's output.

    Groups that cannot grow exactly (with a LayerNorm over their own width) keep their width. New
    units get fresh weights; the existing weights and the optimizer's state are kept.

    Args:
        fraction: the number of units added per drift, relative to the initial width of the group,
            > 0.
        most: the largest width of a group, relative to its initial width, > 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, fraction: float = 0.25, most: float = 4.0) -> None:
        if not fraction > 0:
            raise ValueError(f"Widen: fraction is {fraction}; it must be > 0 to add units")
        if not most > 1:
            raise ValueError(f"Widen: most is {most}; it must be > 1 to leave room to grow")
        self._fraction = fraction
        self._most = most
        self._first_widths: dict[str, int] = {}

    @property
    def memory(self) -> int:
        """0: this reaction needs no past events."""
        return 0

    def prepare(self, learner: ReactingLearner, /) -> None:
        """Store the initial widths of the network.

        Raises:
            LearnerError: the learner was built without `structure`, or no width group of its
                network can grow exactly.
        """
        if learner.structure is None or not any(g.exact_growth for g in learner.structure.groups):
            raise LearnerError(
                "the reaction 'grow' needs a network whose widths it can change; build the "
                "learner with structure=trace(model, example_inputs)"
            )
        self._first_widths = learner.structure.widths

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """Grow on drift, except groups that would become too wide."""
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
            learner.structure.commit()  # a stream has no end, and receipts use memory

    def state_dict(self) -> dict[str, Any]:
        """Return the initial widths."""
        return {"first_widths": dict(self._first_widths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the initial widths.

        Raises:
            CheckpointError: they are not those of the learner's network.
        """
        widths = state.get("first_widths")
        if (
            not isinstance(widths, dict)
            or widths.keys() != self._first_widths.keys()
            or not all(type(width) is int and width >= 1 for width in widths.values())
        ):
            raise CheckpointError(
                f"Widen: the initial widths are {widths!r:.200}; the network has the width groups "
                f"{', '.join(self._first_widths)!s:.200}"
            )
        self._first_widths = dict(widths)
