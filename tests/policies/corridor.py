"""An environment whose best policy is known: a corridor of four cells and a pit.

The agent starts in cell 0. `cash` ends the episode and pays 0.1, or 1.0 in cell 3, the last one.
`go` moves to the next cell and pays -0.05. `grab` is legal in even cells; it pays 0.3 but leads to
the pit, where the only legal action is `cash`, which pays -0.6. The best policy goes to the last
cell and cashes there: 3 · (-0.05) + 1.0 = 0.85.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

CASH, GO, GRAB = 0, 1, 2
CELLS, PIT = 4, 4
BEST_RETURN = 0.85
ID = "dynopt-tests/Corridor-v0"


class Corridor(VectorEnv[Any, Any, Any]):
    """Many corridors at once."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    horizon = 6

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.single_observation_space = spaces.Dict(
            {
                "observations": spaces.Box(0, 1, (CELLS + 1,), np.float32),
                "action_mask": spaces.Box(0, 1, (3,), np.int8),
            }
        )
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._at = np.zeros(num_envs, dtype=np.int64)
        self._over = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        self._at[:], self._over[:] = 0, False
        return self._seen(), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        rewards, over = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.bool_)
        masks = self._seen()["action_mask"]
        for i, action in enumerate(actions):
            if self._over[i]:
                self._at[i] = 0
                continue
            assert masks[i, action], f"illegal action {action} in cell {self._at[i]}"
            cell = self._at[i]
            if action == CASH:
                rewards[i] = -0.6 if cell == PIT else 1.0 if cell == CELLS - 1 else 0.1
                over[i] = True
            elif action == GO:
                rewards[i], self._at[i] = -0.05, cell + 1
            else:
                rewards[i], self._at[i] = 0.3, PIT
        self._over = over
        return self._seen(), rewards, over.copy(), np.zeros_like(over), {}

    def _seen(self) -> dict[str, NDArray[Any]]:
        mask = np.ones((self.num_envs, 3), dtype=np.int8)
        mask[self._at >= CELLS - 1, GO] = 0
        mask[(self._at % 2 == 1) | (self._at == PIT), GRAB] = 0
        return {"observations": np.eye(CELLS + 1, dtype=np.float32)[self._at], "action_mask": mask}


def register() -> None:
    """Register the corridor with Gymnasium unless it is registered already."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, vector_entry_point=lambda **options: Corridor(**options))
