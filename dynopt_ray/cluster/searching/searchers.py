"""The built-in searchers, which draw configurations: a grid, and samplers of Optuna."""

from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dynopt_ray.cluster.searching.space import Point, Space


def random(*, seed: int) -> Searcher:
    """Draw every configuration independently at random.

    Args:
        seed: seed of the draws.
    """
    from optuna.samplers import RandomSampler

    return OptunaSearcher(RandomSampler(seed=seed))


def optuna(*, seed: int, num_startup_trials: int = 10) -> Searcher:
    """Optuna's tree-structured Parzen estimator, which draws near configurations that did well.

    Args:
        seed: seed of the draws. With one trial at a time, the same seed gives the same search.
            With several at once it need not, because results are used in the order in which they
            arrive.
        num_startup_trials: number of trials drawn at random before results are used.
    """
    from optuna.samplers import TPESampler

    return OptunaSearcher(TPESampler(seed=seed, n_startup_trials=num_startup_trials))


class OptunaSearcher(OptunaSearch):
    """A searcher that draws with one of Optuna's samplers.

    Args:
        sampler: the sampler.
        first: points to try before the sampler draws. It learns from them, too.
    """

    def __init__(self, sampler: Any, first: Sequence[Point] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(sampler=sampler, points_to_evaluate=[dict(point) for point in first])
        self._own_sampler = sampler

    def beginning_with(self, first: Sequence[Point]) -> "OptunaSearcher":
        """Return a searcher that tries some points before it draws with the same sampler.

        Call this before anything is drawn, because the sampler's state is shared.
        """
        return OptunaSearcher(self._own_sampler, first)


def grid(*, seed: int) -> "Grid":
    """Try every configuration of a space of choices once, in order.

    Args:
        seed: unused, because a grid draws nothing at random.
    """
    del seed
    return Grid()


class Grid(Searcher):
    """The searcher that `grid` makes."""

    def __init__(self) -> None:
        super().__init__(metric="utility", mode="max")
        self._points: list[Point] = []

    def cover(self, space: Space) -> int:
        """Set the space whose configurations will be tried.

        Returns:
            The number of configurations.

        Raises:
            SpecError: the space has a range.
        """
        self._points = space.grid()
        return len(self._points)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Change nothing: `cover` has set the space, and results do not matter."""
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next configuration, or `FINISHED` after the last one."""
        del trial_id
        if not self._points:
            finished: Any = Searcher.FINISHED
            return finished  # type: ignore[no-any-return]
        return dict(self._points.pop(0))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: a grid does not learn from results."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: searches are not resumed."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""
