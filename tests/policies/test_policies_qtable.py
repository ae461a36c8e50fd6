"""Q-learning in cells: where cells end, how much is explored, and which steps are learned."""

import numpy as np
import pytest

from dynopt_ray.policies import QTable, train_qtable
from dynopt_ray.policies.learned.qtable import random_fraction
from tests.policies.corridor import CELLS, GO, GRAB, ID, PIT, register

EDGES = {cell: [0.5] for cell in range(CELLS + 1)}


def test_a_value_on_an_edge_of_a_q_table_belongs_to_the_upper_cell() -> None:
    table = QTable({0: [0.5, 0.75]}, num_actions=2)
    cells = [table.cell(np.array([value], np.float32)) for value in (0.49, 0.5, 0.75)]
    assert cells == [(0,), (1,), (2,)]


def test_exploration_falls_linearly_over_half_of_training() -> None:
    fractions = [random_fraction(taken, 100, epsilon=0.2) for taken in (0, 25, 50, 75, 100)]
    assert fractions == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])


def test_steps_that_only_start_a_new_episode_are_not_learned() -> None:
    register()
    table = train_qtable(ID, num_steps=200, num_envs=4, seed=0, edges=EDGES)
    learned = sum(int(visits.sum()) for visits in table.visits.values())
    assert 200 <= learned < 200 + 4
    # From the pit only cashing is legal; a start of another episode would be learned there.
    (pit,) = (cell for cell in table.visits if cell[PIT] == 1)
    assert table.visits[pit][[GO, GRAB]].sum() == 0
