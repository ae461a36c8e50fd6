"""The built-in searchers, which draw configurations: a grid, and samplers of Optuna."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dynopt_ray.cluster.searching.space import Choice, Dimension, Point, Space

_Key = frozenset[tuple[str, Any]]
_MOST_REDRAWS = 32


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
    """A searcher that draws with one of Optuna's samplers, no configuration twice.

    Samplers draw with replacement. A draw that was tried before is marked as failed in the study,
    from which samplers learn nothing, and the sampler draws again. If it keeps to what was tried,
    the first untried configuration is taken. In a finite space where all were tried, the search is
    over. Two points stand for one configuration if they differ only in dimensions that are not
    used. Without `cover`, repeats are not noticed.

    Args:
        sampler: the sampler.
        first: points to try before the sampler draws. It learns from them, too.
    """

    def __init__(self, sampler: Any, first: Sequence[Point] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(sampler=sampler, points_to_evaluate=[dict(point) for point in first])
        self._own_sampler = sampler
        self._covered: Space | None = None
        self._tried: set[_Key] = set()

    def beginning_with(self, first: Sequence[Point]) -> "OptunaSearcher":
        """Return a searcher that tries some points before it draws with the same sampler.

        Call this before anything is drawn, because the sampler's state is shared.
        """
        return OptunaSearcher(self._own_sampler, first)

    def cover(self, space: Space) -> int | None:
        """Set the space, so that no configuration is drawn twice.

        Returns:
            The number of configurations, or None if there are infinitely many.
        """
        self._covered = space
        return space.size

    def learn(self, point: Point, values: Sequence[float]) -> None:
        """Learn from a trial of an earlier search like from one of this search.

        Args:
            point: its point in the space.
            values: its figures, one per objective of this search.
        """
        from optuna.trial import create_trial

        space: Any = self._space  # optuna's distributions, once the search has begun
        self._study().add_trial(
            create_trial(params=dict(point), distributions=space, values=list(values))
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return a point that was not tried before, or `FINISHED` if there is none."""
        if self._covered is None or trial_id in self._ot_trials:
            return self._drawn(trial_id)
        for _ in range(_MOST_REDRAWS):
            point = self._drawn(trial_id)
            if self._is_new(point):
                return point
            self._withdraw(trial_id)
        untried = self._untried(self._covered)
        if untried is None:
            finished: Any = Searcher.FINISHED
            return finished  # type: ignore[no-any-return]
        self._study().enqueue_trial(untried)
        point = self._drawn(trial_id)
        self._is_new(point)
        return point

    def _study(self) -> Any:
        assert self._ot_study is not None  # Tune and `run_locally` set the space first
        return self._ot_study

    def _drawn(self, trial_id: str) -> dict[str, Any]:
        point: dict[str, Any] | None = super().suggest(trial_id)
        assert point is not None  # as the space is not empty
        return point

    def _is_new(self, point: Point) -> bool:
        """Return whether a point's configuration was not tried before, and note it as tried."""
        assert self._covered is not None
        key = _key(self._covered.used(point))
        is_new = key not in self._tried
        self._tried.add(key)
        return is_new

    def _untried(self, space: Space) -> dict[str, Any] | None:
        """Return a point that was not tried before, or None if there is none."""
        if space.size is not None:
            new = (point for point in space.points() if _key(point) not in self._tried)
            return next(map(space.point, new), None)
        # Only a part of the space is finite, and a point at random leaves it sooner or later.
        generator = Random(len(self._tried))
        while True:
            point = {name: _at_random(d, generator) for name, d in space.dimensions.items()}
            if _key(space.used(point)) not in self._tried:
                return point

    def _withdraw(self, trial_id: str) -> None:
        from optuna.trial import TrialState

        self._study().tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)


def _at_random(dimension: Dimension, generator: Random) -> float:
    """Draw a value of a dimension, uniformly or, for a logarithmic range, log-uniformly."""
    if isinstance(dimension, Choice):
        return generator.randrange(len(dimension.options))
    low, high = dimension.low, dimension.high
    if dimension.whole:
        return generator.randint(int(low), int(high))
    if not dimension.log:
        return generator.uniform(low, high)
    return min(high, max(low, math.exp(generator.uniform(math.log(low), math.log(high)))))


def _key(used: Point) -> _Key:
    return frozenset(used.items())


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
