"""A reaction that raises the learning rate for some time after drift."""

from typing import Any

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online.drift.reaction import ReactingLearner


class RaiseRate:
    """Raises the learning rate on drift, then lets it fall back.

    n events after the drift, every rate is multiplied by 1 + (factor − 1)·2^(−n / half_life). This
    boost ends when it is below 1.01.

    Args:
        factor: the boost at the drift, > 1.
        half_life: the number of events after which boost − 1 has halved, >= 1.

    Raises:
        ValueError: an argument is out of range.
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
        """0: this reaction needs no past events."""
        return 0

    def prepare(self, _learner: ReactingLearner, /) -> None:
        """Accept any learner."""

    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        """Start the boost on drift; otherwise let it decay."""
        if drift:
            self._since = learner.events
        if self._since is None:
            return
        age = max(0, learner.events - self._since)
        boost = 1 + (self._factor - 1) * 2 ** (-age / self._half_life)
        if boost < 1.01:
            boost, self._since = 1.0, None
        learner.rates.boost = boost

    def state_dict(self) -> dict[str, Any]:
        """Return the event at which the boost began."""
        return {"since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the event at which the boost began.

        Raises:
            CheckpointError: the state is not one of this reaction.
        """
        since = state.get("since")
        if state.keys() != {"since"} or not (since is None or (type(since) is int and since >= 0)):
            raise CheckpointError(f"RaiseRate: the state is {state!r:.100}; it names no event")
        self._since = since
