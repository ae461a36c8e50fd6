"""Translate search spaces for Ray Tune."""

from typing import Any

from ray import tune

from dynopt_ray.cluster.searching.space import Choice, Dimension, Space


def tune_space(space: Space) -> dict[str, Any]:
    """Return Tune's domain for each dimension of a space. Choices are drawn by index."""
    return {name: _domain(dimension) for name, dimension in space.dimensions.items()}


def _domain(dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return tune.choice(list(range(len(dimension.options))))
    low, high = dimension.low, dimension.high
    if dimension.whole:
        # Tune excludes the upper end.
        return (tune.lograndint if dimension.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(low, high)
