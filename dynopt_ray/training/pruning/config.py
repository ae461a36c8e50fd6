"""Build recoveries from their form in specs and search spaces."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.training.by_name import make_by_name
from dynopt_ray.training.pruning.recovery import Greedy, Random, Recovery
from dynopt_ray.training.pruning.regrowth import Regrowth

RECOVERIES: dict[str, Any] = {"greedy": Greedy, "random": Random, "regrowth": Regrowth}


def make_recovery(config: str | Mapping[str, Any] | None) -> Recovery | Regrowth | None:
    """Return the recovery that a configuration describes.

    Args:
        config: "greedy", "random" or "regrowth", a mapping with such a name and arguments, or None
            for no recovery.

    Raises:
        SpecError: an unknown recovery, or arguments that it lacks or refuses.
    """
    if config is None:
        return None
    made: Recovery | Regrowth = make_by_name(config, "recovery", RECOVERIES)
    return made
