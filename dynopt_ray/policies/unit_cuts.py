"""Which units a cut of the whole network removes, the same way for real and stacked networks."""

from collections.abc import Callable, Sequence

import numpy as np

from dynopt_ray.arrays import FloatArray, IntArray


def units_to_remove(
    scores: Sequence[FloatArray],
    min_widths: Sequence[int],
    steps: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    most: float,
) -> list[IntArray]:
    """Choose the fewest units with the lowest scores without which a network is cheap enough.

    Units of all groups are ordered by their scores. A group loses its units in its own multiples,
    each multiple at the place of the highest score in it.

    Args:
        scores: the scores of each group's units, comparable across groups.
        min_widths: the fewest units that each group can have.
        steps: units of each group are removed in multiples of this.
        cost: widths of all groups -> cost; it falls with every width.
        most: the largest cost that is cheap enough.

    Returns:
        For each group the units to remove, in increasing order. If even the narrowest network is
        too expensive, all units that can be removed.
    """
    widths = [len(one) for one in scores]
    orders = [one.argsort(kind="stable") for one in scores]
    dearest, of_group = [], []
    for group, (one, order) in enumerate(zip(scores, orders, strict=True)):
        num_multiples = (widths[group] - min_widths[group]) // steps[group]
        last = np.arange(1, num_multiples + 1) * steps[group] - 1
        dearest.append(one[order[last]])
        of_group.append(np.full(num_multiples, group))
    groups = np.concatenate(of_group)[np.concatenate(dearest).argsort(kind="stable")]
    taken = np.zeros((len(groups) + 1, len(scores)), dtype=np.int64)
    taken[1:] = (groups[:, None] == np.arange(len(scores))).cumsum(0)
    after = np.array(widths) - taken * np.array(steps)
    low, high = 0, len(groups)
    while low < high:
        middle = (low + high) // 2
        if cost(after[middle].tolist()) <= most:
            high = middle
        else:
            low = middle + 1
    gone = np.array(widths) - after[low]
    return [np.sort(order[:number]) for order, number in zip(orders, gone, strict=True)]
