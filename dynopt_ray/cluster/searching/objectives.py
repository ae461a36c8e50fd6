"""What a search looks for: the highest utility, or a Pareto front of several figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

SearchObjective = Literal["utility", "pareto"] | Sequence[str]
"""See `dynopt_ray.cluster.search`."""


@dataclass(frozen=True)
class Objectives:
    """What a search looks for.

    Attributes:
        costs: the figures that the Pareto front holds against accuracy; lower is better.
        is_pareto: whether the searcher optimises accuracy and costs together, instead of utility.
    """

    costs: tuple[str, ...] = ("cost",)
    is_pareto: bool = False

    @staticmethod
    def parse(objective: SearchObjective) -> "Objectives":
        """Return the objectives that a user names.

        Raises:
            ValueError: it is neither a known name nor a list of "accuracy" and of costs.
        """
        if isinstance(objective, str):
            if objective not in ("utility", "pareto"):
                raise ValueError(
                    f"objective is {objective!r}; it must be 'utility', 'pareto', or a list such "
                    "as ['accuracy', 'cost', 'flops']"
                )
            return Objectives(is_pareto=objective == "pareto")
        names = list(objective)
        costs = tuple(name for name in names if name != "accuracy")
        if "accuracy" not in names or not costs or len(set(names)) < len(names):
            raise ValueError(
                f"objective is {names!r:.200}; a list names 'accuracy' and, once each, the figures "
                "that should be low"
            )
        return Objectives(costs, is_pareto=True)

    @property
    def metric(self) -> str | list[str]:
        """The names of the figures that the searcher optimises."""
        return ["accuracy", *self.costs] if self.is_pareto else "utility"

    @property
    def mode(self) -> str | list[str]:
        """Whether each of these figures should be high ("max") or low ("min")."""
        return ["max", *("min" for _ in self.costs)] if self.is_pareto else "max"

    def values(self, row: Mapping[str, Any]) -> list[float] | None:
        """Return the figures of a trial that the searcher optimises; None if one is missing."""
        names = self.metric if isinstance(self.metric, list) else [self.metric]
        return [float(row[name]) for name in names] if all(name in row for name in names) else None

    def check(self, searcher: "Searcher", scheduler: "TrialScheduler") -> None:
        """Refuse searchers and schedulers that compare trials by one number only.

        Raises:
            ValueError: the message says what to choose instead.
        """
        from ray.tune.schedulers import FIFOScheduler

        from dynopt_ray.cluster.searching.searchers import Grid, OptunaSearcher

        if not self.is_pareto:
            return
        if not isinstance(searcher, Grid | OptunaSearcher):
            raise ValueError(
                f"the searcher {type(searcher).__name__} looks for one figure; with objective "
                "'pareto' use 'optuna', 'random' or 'grid'"
            )
        if type(scheduler) is not FIFOScheduler:
            raise ValueError(
                f"the scheduler {type(scheduler).__name__} compares trials by one figure; with "
                "objective 'pareto' leave it out, so that all trials finish"
            )


def check_objective(objective: SearchObjective) -> None:
    """Refuse what is no objective.

    Raises:
        ValueError: see `Objectives.parse`.
    """
    Objectives.parse(objective)
