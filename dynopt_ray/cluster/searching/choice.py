"""Which finished trial wins: one that is cheap and cannot be told from the best.

The best of many trials by a few hundred validation rows owes part of its lead to luck: the more
trials, the more. A trial whose utility is within one standard error of the best is as likely to be
the better one on new data, so the cheapest of them is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynopt_ray.arrays import FloatArray

Winner = Literal["one_standard_error", "best"]


@dataclass(frozen=True)
class Candidate:
    """A finished trial.

    Attributes:
        number: the trial.
        cost: its relative cost.
        charge: λ times its cost.
        accuracy: the task's metric on validation data.
        row_scores: a score for each of some validation rows, (rows,), the same rows for all trials;
            None if the trial gave none. Larger is better.
    """

    number: int
    cost: float
    charge: float
    accuracy: float
    row_scores: FloatArray | None

    @property
    def utility(self) -> float:
        """Accuracy minus λ times cost."""
        return self.accuracy - self.charge


def chosen(candidates: Sequence[Candidate], choice: Winner) -> int:
    """Return the number of the trial that wins.

    Args:
        candidates: the finished trials, at least one.
        choice: "best" takes the highest utility. "one_standard_error" takes the cheapest trial
            whose mean score minus λ times cost is within one standard error of the highest. It
            is that of the mean difference between the scores of the two trials over the rows, which
            a paired bootstrap would estimate. Without scores it is "best".
    """
    best = max(candidates, key=lambda one: (one.utility, -one.cost, -one.number))
    sizes = {None if one.row_scores is None else len(one.row_scores) for one in candidates}
    if choice == "best" or sizes == {None} or len(sizes) > 1 or sizes <= {0, 1}:
        return best.number
    leader = max(candidates, key=lambda one: (_selection(one), -one.cost, -one.number))
    close = [one for one in candidates if _is_close(one, leader)]
    return min(close, key=lambda one: (one.cost, -_selection(one), one.number)).number


def _selection(candidate: Candidate) -> float:
    assert candidate.row_scores is not None
    return float(candidate.row_scores.mean()) - candidate.charge


def _is_close(candidate: Candidate, leader: Candidate) -> bool:
    assert candidate.row_scores is not None
    assert leader.row_scores is not None
    differences = leader.row_scores - candidate.row_scores
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return _selection(leader) - _selection(candidate) <= error
