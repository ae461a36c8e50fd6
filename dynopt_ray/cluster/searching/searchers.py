"""Searchers and schedulers by name; the algorithms are Optuna's and Ray Tune's."""

from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dynopt_ray.cluster.searching.space import Flat, Space


def random(*, seed: int) -> Searcher:
    """Independent draws.

    Args:
        seed: of the draws.
    """
    from optuna.samplers import RandomSampler

    return Sampled(RandomSampler(seed=seed))


def optuna(*, seed: int, num_startup_trials: int = 10) -> Searcher:
    """Optuna's tree-structured Parzen estimator: draws near what did well.

    Args:
        seed: of the draws. With several trials at once it sees their results in the order in
            which they arrive; with one at a time the same seed gives the same search.
        num_startup_trials: trials drawn at random before it begins to learn.
    """
    from optuna.samplers import TPESampler

    return Sampled(TPESampler(seed=seed, n_startup_trials=num_startup_trials))


class Sampled(OptunaSearch):
    """Draws by one of Optuna's samplers.

    Args:
        sampler: it.
        first: what to try before it draws, and to learn from.
    """

    def __init__(self, sampler: Any, first: Sequence[Flat] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(sampler=sampler, points_to_evaluate=[dict(point) for point in first])
        self._own_sampler = sampler

    def beginning_with(self, first: Sequence[Flat]) -> "Sampled":
        """The same, before anything is drawn, but some points come first."""
        return Sampled(self._own_sampler, first)


def grid(*, seed: int) -> "Grid":
    """Every configuration of a space of choices, once each, in order.

    Args:
        seed: of nothing: a grid draws nothing.
    """
    del seed
    return Grid()


class Grid(Searcher):
    """See `grid`."""

    def __init__(self) -> None:
        super().__init__(metric="utility", mode="max")
        self._points: list[Flat] = []

    def cover(self, space: Space) -> int:
        """Begin with a space.

        Returns:
            How many configurations it has.

        Raises:
            SpecError: it has ranges.
        """
        self._points = space.grid()
        return len(self._points)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Nothing to set: what it covers is known, and no result changes it."""
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next configuration, while there is one."""
        del trial_id
        if not self._points:
            finished: Any = Searcher.FINISHED
            return finished  # type: ignore[no-any-return]
        return dict(self._points.pop(0))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: searches are not resumed."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""
