"""Growing the network after drift."""

from typing import Any

from dynopt_ray.errors import LearnerError
from dynopt_ray.online.drift.reaction import ReactingLearner
from dynopt_ray.structure import Grow


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

    def prepare(self, learner: ReactingLearner, /) -> None:
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

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
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
