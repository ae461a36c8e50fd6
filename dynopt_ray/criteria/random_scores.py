"""Random criterion: the baseline that every other criterion has to beat."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence


def random(*, seed: int = 0) -> "RandomScores":
    """Draw scores uniformly from [0, 1); the same seed gives the same scores.

    The global generators of torch and NumPy are not used.

    Args:
        seed: seed of the random draws, >= 0.

    Raises:
        ValueError: `seed` is negative.
    """
    return RandomScores(seed)


@dataclass(frozen=True)
class RandomScores:
    """See `random`."""

    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"random: seed is {self.seed}; it must be >= 0")

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """One draw per unit."""
        return self._draw({group.name: (group.width,) for group in evidence.graph})

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """One draw per weight."""
        return self._draw({name: tuple(w.shape) for name, w in evidence.weights.items()})

    def _draw(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        generator = np.random.default_rng(self.seed)
        return {
            name: torch.from_numpy(generator.random(shape, dtype=np.float32))
            for name, shape in shapes.items()
        }
