"""A pruned network while it is retrained, and the trained network that it was cut from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.structure import Cost, Graph
from dynopt_ray.tasks import Task
from dynopt_ray.training import Costs, TrainingInParts, network_bytes

_MOST_SCORES = 2_000


@dataclass(frozen=True, eq=False)
class TracedStart:
    """A trained network from which trials begin.

    Attributes:
        task: what it has learned, on the device of the trials.
        graph: the traced network.
        costs: its costs.
        cost: what the costs of trials are relative to.
    """

    task: Task
    graph: Graph
    costs: Costs
    cost: Cost


@dataclass(frozen=True, eq=False)
class PrunedTraining:
    """A pruned network and its retraining.

    Attributes:
        task: what it learns.
        graph: the traced network.
        parts: the retraining.
        num_steps: number of steps of the whole retraining.
        remove_fraction: what was removed.
        cost: its relative cost.
        sizes: its costs in numbers.
    """

    task: Task
    graph: Graph
    parts: TrainingInParts
    num_steps: int
    remove_fraction: float
    cost: float
    sizes: Mapping[str, float]

    def measurement(
        self,
        step: int,
        figures: Mapping[str, float],
        update: Callable[[], None] = lambda: None,
    ) -> Measurement:
        """Return the measurement after a part of the retraining.

        Args:
            step: number of steps so far.
            figures: what the part has given.
            update: brings network and optimizer up to date, if another place trains them.
        """
        final = step == self.num_steps
        if final:
            update()
        return Measurement(
            step=step,
            accuracy=figures["accuracy"],
            cost=self.cost,
            final=final,
            details={**{n: v for n, v in figures.items() if n != "accuracy"}, **self.sizes},
            network=(lambda: network_bytes(self.graph.model)) if final else None,
            row_scores=_scores(self.task, self.graph) if final else None,
            state=partial(self._state, update),
        )

    def _state(self, update: Callable[[], None]) -> dict[str, Any]:
        update()
        return {
            "network": _as_tensor(network_bytes(self.graph.model)),
            "training": self.parts.state_dict(),
            "remove_fraction": self.remove_fraction,
        }


def _scores(task: Task, graph: Graph) -> list[float] | None:
    """Return scores of evenly spaced validation rows, the same rows for every network."""
    scores = task.row_scores(graph.model)
    if scores is None:
        return None
    found: list[float] = scores[:: -(-len(scores) // _MOST_SCORES)].tolist()
    return found


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
