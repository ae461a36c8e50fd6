"""Learning rates, optimizers and recoveries as specs and search spaces write them."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.training.by_name import make_by_name
from dynopt_ray.training.pruning.recovery import Greedy, Random, Recovery
from dynopt_ray.training.pruning.regrowth import Regrowth

RECOVERIES: dict[str, Any] = {"greedy": Greedy, "random": Random, "regrowth": Regrowth}


def make_recovery(config: str | Mapping[str, Any] | None) -> Recovery | Regrowth | None:
    """What gives back a part of cuts: a name, a mapping with arguments, or None.

    Names are "greedy", "random" and "regrowth".

    Raises:
        SpecError: no such recovery, or arguments that it does not have or refuses.
    """
    if config is None:
        return None
    made: Recovery | Regrowth = make_by_name(config, "recovery", RECOVERIES)
    return made
