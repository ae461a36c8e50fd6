"""The backend for any task: real networks and their optimizers, edited one by one.

Each network draws from random generators of its own, seeded by the episode. So its trajectory
depends on neither other networks nor anything else in the process, also with dropout.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import SGD

from dynopt_envs.backend import NOTHING
from dynopt_envs.config import EpisodeConfig
from dynopt_envs.starts import batch_size, start_network
from dynopt_ray.arrays import IntArray
from dynopt_ray.errors import TraceError
from dynopt_ray.policies import (
    ActionMask,
    DescribedNetwork,
    Descriptors,
    GraphEvidence,
    Performance,
    Preview,
    compensation_batches,
    describe_graphs,
    num_training_rows,
    preview_graph,
)
from dynopt_ray.structure import Cost, Graph, trace
from dynopt_ray.tasks import Metrics, Task, read_metrics
from dynopt_ray.training import RandomStream


@dataclass(eq=False)
class _Network:
    """One network of an episode."""

    place: int
    task: Task
    graph: Graph
    optimizer: SGD
    seed: int
    random: RandomStream
    generator: torch.Generator
    start_widths: dict[str, int]
    start_cost: Cost
    metrics: Metrics
    train_loss: float


class ModuleBackend:
    """N real networks; see `Backend`."""

    def __init__(self, tasks: Sequence[Task], config: EpisodeConfig, num_members: int) -> None:
        self._tasks = tasks
        self._config = config
        self._batches = [compensation_batches(task) for task in tasks]
        self._counts = np.array([num_training_rows(task) for task in tasks])
        self.num_groups = num_groups(tasks[0])
        self.num_starts = len(tasks) * config.start.num_starts
        self._networks = [self._network(0, 0) for _ in range(num_members)]

    @property
    def num_samples(self) -> IntArray:
        """The number of training rows of each network's task."""
        return np.array([self._counts[network.place] for network in self._networks])

    def start(self, members: Sequence[int], starts: Sequence[int], seeds: Sequence[int]) -> None:
        """Copy members from the pool, whose networks are trained when they are first needed."""
        for member, index, seed in zip(members, starts, seeds, strict=True):
            self._networks[member] = self._network(index, seed)

    def describe(self, cursor: IntArray) -> Descriptors:
        """Describe the networks one by one, and read the figures of all of them at once."""
        return describe_graphs(
            [
                DescribedNetwork(
                    network.graph, int(group), network.start_widths, network.start_cost
                )
                for network, group in zip(self._networks, cursor, strict=True)
            ]
        )

    def preview(self, networks: Descriptors, action_mask: ActionMask, members: IntArray) -> Preview:
        """Carry out each action on the networks, one by one, and undo it."""
        found = []
        for member in members:
            network, row = self._networks[member], networks.row(member)
            metrics = network.metrics
            figures = (np.array([metrics.smooth]), np.array([metrics.loss]), row.costs)
            with network.random():
                preview = preview_graph(
                    network.graph,
                    network.task,
                    network=row,
                    actions=self._config.actions,
                    legal=action_mask[member] > 0,
                    evidence=self._evidence(network),
                    start_cost=network.start_cost,
                    unchanged=Preview.unchanged(*figures, action_mask.shape[1]),
                    optimizer=network.optimizer,
                )
            found.append(preview)
        return Preview(
            np.concatenate([one.smooth for one in found]),
            np.concatenate([one.loss for one in found]),
            np.concatenate([one.costs for one in found]),
        )

    def apply(self, networks: Descriptors, actions: IntArray) -> None:
        """Edit the networks one by one."""
        for member, network in enumerate(self._networks):
            if actions[member] == NOTHING:
                continue
            action = self._config.actions[int(actions[member])]
            evidence = self._evidence(network)
            plan = action.plan(network.graph, networks.row(member), evidence)
            if plan:
                with network.random():
                    network.graph.apply(
                        plan, optimizer=network.optimizer, compensate=evidence.inputs
                    )
                network.graph.commit()  # actions are never undone

    def _evidence(self, network: _Network) -> GraphEvidence:
        return GraphEvidence(network.graph, self._batches[network.place], network.task.loss)

    def train(self, active: NDArray[np.bool_]) -> None:
        """Train the active networks one by one."""
        trained = [self._networks[i] for i in np.flatnonzero(active)]
        unread = []
        for network in trained:
            with network.random():
                stats = network.task.train_steps(
                    network.graph.model,
                    network.optimizer,
                    self._config.train_steps,
                    batch_size=batch_size(network.task, self._config.start),
                    generator=network.generator,
                )
                unread.append(network.task.evaluate_unread(network.graph.model))
            network.train_loss = stats.mean_loss
        for network, metrics in zip(trained, read_metrics(*unread), strict=True):
            network.metrics = metrics

    def measure(self) -> Performance:
        """Return the performance after the latest training or start."""
        return Performance(
            np.array([network.metrics.metric for network in self._networks]),
            np.array([network.metrics.smooth for network in self._networks]),
            np.array([network.metrics.loss for network in self._networks]),
            np.array([network.train_loss for network in self._networks]),
        )

    def _network(self, index: int, seed: int) -> _Network:
        place, number = divmod(index, self._config.start.num_starts)
        task = self._tasks[place]
        start = start_network(task, self._config.start, number)
        # Copied together, so that the copied optimizer refers to the copied parameters.
        model, optimizer = copy.deepcopy((start.model, start.optimizer))
        for group in optimizer.param_groups:
            group["lr"] = self._config.learning_rate
        graph = trace(model, task.example_inputs())
        return _Network(
            place=place,
            task=task.to(task.device),  # a loader's pass starts anew
            graph=graph,
            optimizer=optimizer,
            seed=seed,
            random=RandomStream(model, seed),
            generator=torch.Generator().manual_seed(seed),
            start_widths=graph.widths,
            start_cost=graph.cost(graph.widths),
            metrics=start.metrics,
            train_loss=start.train_loss,
        )


def num_groups(task: Task) -> int:
    """Return the number of width groups of a task's network.

    Raises:
        TraceError: no width of the network can be resized.
    """
    graph = trace(task.new_model(seed=0), task.example_inputs())
    if not graph.groups:
        raise TraceError(
            f"task {task.name!r}: no width of its network can be resized: {graph.fixed}"
        )
    return len(graph.groups)
