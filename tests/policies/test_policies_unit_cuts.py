"""Which units a cut of the whole network removes, against all prefixes one by one."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from dynopt_ray.policies.unit_cuts import units_to_remove


def flops(widths: Sequence[int]) -> float:
    return float(sum(a * b for a, b in pairwise([5, *widths, 3])))


@pytest.mark.parametrize("seed", range(20))
def test_the_fewest_units_of_least_importance_go(seed: int) -> None:
    generator = np.random.default_rng(seed)
    widths = generator.integers(2, 9, 3).tolist()
    scores = [generator.random(width) for width in widths]
    most = flops(widths) * generator.uniform(0.2, 0.9)
    gone = units_to_remove(scores, [1, 1, 1], [1, 1, 1], flops, most)
    left = [width - len(units) for width, units in zip(widths, gone, strict=True)]
    assert flops(left) <= most
    # No unit that stays is less important than one that goes, except a group's last one.
    dearest = max(scores[g][u] for g, units in enumerate(gone) for u in units)
    for group, units in enumerate(gone):
        staying = np.delete(scores[group], units)
        assert left[group] == 1 or staying.min() > dearest
    # With the dearest unit back, the network is too expensive.
    back = [number + (dearest in scores[group][gone[group]]) for group, number in enumerate(left)]
    assert flops(back) > most


def test_groups_keep_their_least_widths_and_multiples() -> None:
    scores = [np.arange(8.0), np.arange(6.0) / 10]
    gone = units_to_remove(scores, [4, 2], [2, 2], flops, 0.0)
    assert [units.tolist() for units in gone] == [[0, 1, 2, 3], [0, 1, 2, 3]]
    (first, second) = units_to_remove(scores, [4, 2], [2, 2], flops, flops([8, 5]))
    assert (first.tolist(), second.tolist()) == ([], [0, 1])
    # Already cheap enough: nothing goes.
    assert all(not len(one) for one in units_to_remove(scores, [4, 2], [2, 2], flops, 1e9))
