"""The settings of pruning trials."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from torch import nn

from dynopt_ray.criteria import SCOPES, build_criterion
from dynopt_ray.errors import DynoptError, SpecError, did_you_mean
from dynopt_ray.training import (
    MOST_ROUNDS,
    Granularity,
    make_optimizer,
    make_rate,
    make_recovery,
)


@dataclass(frozen=True)
class PruneConfig:
    """The settings of a trial, each of which a search may choose.

    Attributes:
        remove_fraction: fraction of the units (or of the weights that are not masked yet) to
            remove, in [0, 1); 0 prunes nothing.
        criterion: scores importance: a criterion's name, or a mapping with its name and
            arguments.
        granularity: "unit" or "weight".
        scope: "global" or "layer".
        rounds: number of cuts in which the fraction is removed; all come before the retraining.
        recovery: "random", "greedy", a mapping with name and arguments, or None.
        lr: learning rate of the retraining: a number, or a mapping that describes a schedule, a
            controller or a population.
        optimizer: optimizer of the retraining: a name, or a mapping with name and arguments. None
            uses `PruneTrial.optimizer`.
        batch_size: rows per batch of the retraining; None takes the task's.
        seed: added to `PruneTrial.seed`; another seed repeats a trial with other random draws.
    """

    remove_fraction: float
    criterion: Any = "magnitude"
    granularity: Any = "unit"
    scope: Any = "global"
    rounds: int = 1
    recovery: Any = None
    lr: Any = 0.01
    optimizer: Any = None
    batch_size: int | None = None
    seed: int = 0


def check_config(config: Mapping[str, Any], retrain_steps: int) -> None:
    """Refuse a configuration that a trial cannot run.

    Raises:
        SpecError: a setting is unknown (the message gives the closest one) or out of range.
    """
    known = [field.name for field in fields(PruneConfig)]
    for name in config:
        if name not in known:
            raise SpecError(
                f"space.{name}: a trial has no setting {name!r}.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )
    if "remove_fraction" not in config:
        raise SpecError("space.remove_fraction: missing; give the fraction to remove, e.g. 0.5")
    _check_settings(PruneConfig(**config), retrain_steps)


def _check_settings(settings: PruneConfig, retrain_steps: int) -> None:
    """Refuse a setting that is out of range; the message names it."""
    fraction = settings.remove_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise SpecError(f"space.remove_fraction: must be from 0 to below 1, not {fraction!r}")
    if type(settings.rounds) is not int or not 1 <= settings.rounds <= MOST_ROUNDS:
        raise SpecError(
            f"space.rounds: must be a whole number from 1 to {MOST_ROUNDS:,}, not "
            f"{settings.rounds!r}"
        )
    if type(settings.seed) is not int or settings.seed < 0:
        raise SpecError(f"space.seed: must be a whole number from 0, not {settings.seed!r}")
    size = settings.batch_size
    if size is not None and (type(size) is not int or size < 1):
        raise SpecError(f"space.batch_size: must be a whole number from 1, not {size!r}")
    for name, known in (("granularity", get_args(Granularity)), ("scope", SCOPES)):
        value = getattr(settings, name)
        if value not in known:
            raise SpecError(f"space.{name}: must be one of {', '.join(known)}, not {value!r}")
    checks: dict[str, Callable[[], object]] = {
        "criterion": lambda: build_criterion(settings.criterion),
        "recovery": lambda: make_recovery(settings.recovery),
        "lr": lambda: make_rate(settings.lr, retrain_steps),
        "optimizer": lambda: (
            settings.optimizer and make_optimizer(settings.optimizer, nn.Linear(1, 1), lr=0.1)
        ),
    }
    for name, check in checks.items():
        try:
            check()
        except (DynoptError, TypeError) as error:
            raise SpecError(f"space.{name}: {error}") from error
