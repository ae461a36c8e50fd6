"""The backend for MLPs: the networks of many episodes as one stack of tensors.

Small MLPs are slow to train one by one, because each operation has more overhead than arithmetic.
This backend trains and measures the networks of all episodes together, as members of one
`Population`. Members whose cursors are on the same layer are described together, and those that
take the same action there are changed together. Narrower members are padded with units whose
weights are zero and stay zero, so members do not influence each other.

The results equal those of `ModuleBackend` up to rounding, because every part is defined in the same
way and makes the same random draws. Network k of the pool is initialised and trained from the same
seed. A member draws batches and new weights from its own seed. `Action.apply_stacked` changes
members as the edits of `Action.plan` would. Descriptors are computed from the same scores. The
costs of an MLP follow from its widths, so nothing needs to be traced.

Shapes: N networks, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dynopt_envs.config import EpisodeConfig, StartConfig
from dynopt_envs.stacked_tasks import StackedTasks
from dynopt_ray.arrays import FloatArray, IntArray
from dynopt_ray.errors import DataError
from dynopt_ray.policies import (
    ActionMask,
    Descriptors,
    Performance,
    Preview,
    StackEvidence,
    changes,
    stacked_scores,
    summarise,
)
from dynopt_ray.population import (
    Population,
    PopulationMetrics,
    batch_rows,
    check_finite,
    evaluate,
    mlp_layout,
    train_steps,
)
from dynopt_ray.tasks import METRICS, Task
from dynopt_ray.transfers import array_to_device, read_together


class PopulationBackend:
    """N stacked MLPs; see `Backend`."""

    def __init__(self, tasks: Sequence[Task], config: EpisodeConfig, num_members: int) -> None:
        self._config = config
        self._data = StackedTasks.of(tasks)
        self._pool, self._pool_measured = _joint_pool(tuple(tasks), config.start)
        self.num_starts = len(self._pool)
        self._members = Population(tasks[0].new_model(seed=0), num_members)
        self._tasks: IntArray = np.zeros(num_members, dtype=np.int64)
        self._generators = [torch.Generator() for _ in range(num_members)]
        self._measured = Performance(*np.zeros((4, num_members)))
        self._unread: _Unread | None = None
        self._previewed = _Previewed({}, {})
        self._start_costs = _costs(self._members)
        self._start_widths = self._members.widths.copy()
        self.num_groups = self._members.num_layers - 1

    @property
    def num_samples(self) -> IntArray:
        """The number of training rows of each network's task."""
        return np.array(self._data.counts)[self._tasks]

    def start(self, members: Sequence[int], starts: Sequence[int], seeds: Sequence[int]) -> None:
        """Copy members from the pool."""
        self.measure()  # what is unread belongs to the networks before
        self._members.copy_from(members, self._pool, starts)
        for member, seed in zip(members, seeds, strict=True):
            self._members.seeds[member] = seed
            self._generators[member].manual_seed(seed)
        for name in ("metric", "smooth", "loss", "train_loss"):
            getattr(self._measured, name)[members] = getattr(self._pool_measured, name)[starts]
        chosen, of = list(members), list(starts)
        self._tasks[chosen] = np.array(of) // self._config.start.num_starts
        self._start_widths[chosen] = self._pool.widths[of]
        self._start_costs[chosen] = _costs(self._members)[chosen]

    def describe(self, cursor: IntArray) -> Descriptors:
        """Describe all networks, layer by layer: those whose cursor is on the layer at once."""
        members, everyone = self._members, np.arange(len(cursor))
        nonzero, biases, masked, quantiles, dead, redundant = self._read(
            [
                *_num_nonzero_each(members),
                self._num_masked(),
                *self._summary(cursor),
            ]
        )
        total = (nonzero + biases).sum(0)
        own = (nonzero + biases)[cursor, everyone]
        reader = nonzero[cursor + 1, everyone]
        sizes = np.stack(
            [np.prod(members.sizes(layer), axis=0) for layer in range(members.num_layers)]
        )
        num_weights = sizes[cursor, everyone]
        unmasked = num_weights - masked[cursor, everyone]
        costs = _costs(members)
        costs[:, 1] = total
        return Descriptors(
            widths=members.widths.copy(),
            start_widths=self._start_widths.copy(),
            cursor=cursor,
            min_widths=np.ones_like(members.widths),
            steps=np.ones_like(members.widths),
            kind=np.zeros_like(cursor),
            quantiles=quantiles,
            dead=dead.astype(np.float64),
            redundant=redundant.astype(np.float64),
            num_weights=num_weights,
            num_unmasked_each=unmasked[:, None],
            cost_share=(own + reader) / np.maximum(total, 1),
            costs=costs / self._start_costs,
            nonzero=total,
            num_spare=(sizes - masked - 1).clip(min=0).sum(0),
        )

    def preview(self, networks: Descriptors, action_mask: ActionMask, members: IntArray) -> Preview:
        """Carry out each action on copies of the networks, which `apply` can then use."""
        base, rows = self._members.taken(members), networks.rows(members)
        evidence = StackEvidence(base, *self._data.samples_of(self._tasks[members]))
        everyone = np.arange(len(members))
        figures = (self._measured.smooth[members], self._measured.loss[members], rows.costs)
        found = Preview.unchanged(*figures, action_mask.shape[1])
        changed: dict[int, Population] = {}
        unread: list[Tensor] = []
        for place, action in enumerate(self._config.actions):
            legal = np.flatnonzero(action_mask[members, place])
            if len(legal) and changes(action):
                changed[place] = copies = base.taken(everyone)
                action.apply_stacked(copies, legal, rows, evidence)
                metrics = self._data.evaluate(copies, self._tasks[members])
                unread += [metrics.smooth, metrics.loss, _num_nonzero(copies)]
        read = iter(self._read(unread))
        for place, copies in changed.items():
            found.smooth[:, place], found.loss[:, place] = next(read), next(read)
            costs = _costs(copies)
            costs[:, 1] = next(read)
            found.costs[:, place] = costs / self._start_costs[members]
        self._previewed = _Previewed(
            {int(member): row for row, member in enumerate(members)}, changed
        )
        return found

    def apply(self, networks: Descriptors, actions: IntArray) -> None:
        """Change all networks, action by action; what was previewed need not be computed again."""
        previewed, self._previewed = self._previewed, _Previewed({}, {})
        evidence = StackEvidence(self._members, *self._data.samples_of(self._tasks))
        for place, action in enumerate(self._config.actions):
            members = np.flatnonzero(actions == place)
            known = np.isin(members, list(previewed.rows)) & (place in previewed.changed)
            if known.any():
                at = [previewed.rows[int(member)] for member in members[known]]
                self._members.copy_from(members[known].tolist(), previewed.changed[place], at)
            if not known.all():
                action.apply_stacked(self._members, members[~known], networks, evidence)

    def train(self, active: NDArray[np.bool_]) -> None:  # noqa: ARG002
        """Train all networks; training the inactive ones too costs no extra operation."""
        start = self._config.start
        rows = self._data.rows(
            self._tasks,
            self._generators,
            batch_size=start.batch_size,
            num_steps=self._config.train_steps,
        )
        losses = train_steps(
            self._members,
            self._data.x,
            self._data.y,
            rows,
            learning_rate=self._config.learning_rate,
            momentum=start.momentum,
            check=False,
        )
        metrics = self._data.evaluate(self._members, self._tasks)
        self._unread = _Unread(losses, metrics, self._config.train_steps)

    def measure(self) -> Performance:
        """Return the performance after the latest training or start.

        Raises:
            DivergedError: the loss of a network is not finite.
        """
        self._read([])
        return self._measured

    def _read(self, tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
        """Return tensors as arrays.

        The figures of the latest training are read with them, if they have not been read yet: the
        host then waits for the device once per step.
        """
        unread, self._unread = self._unread, None
        figures = [] if unread is None else unread.figures
        found = read_together([*figures, *tensors])
        if unread is not None:
            self._measured = unread.checked(found[: len(figures)])
        return [tensor.numpy() for tensor in found[len(figures) :]]

    def _summary(self, cursor: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        """Return the quantiles of scores, and the fractions of dead and of redundant units."""
        members = self._members
        quantiles = torch.zeros(len(cursor), 5, dtype=torch.float64, device=members.device)
        dead, redundant = torch.zeros(2, len(cursor), device=members.device)
        for layer in range(self.num_groups):
            here = np.flatnonzero(cursor == layer)
            if len(here):
                places = members.places(here)
                summary = summarise(
                    stacked_scores(members, layer, places),
                    members.weights[layer][places],
                    array_to_device(members.widths[here, layer], members.device),
                )
                quantiles[places], dead[places], redundant[places] = summary
        return quantiles, dead, redundant

    def _num_masked(self) -> Tensor:
        """Return the number of masked weights of each layer, (L, N)."""
        none = torch.zeros(len(self._members), dtype=torch.int64, device=self._members.device)
        # Masks are True in padding, so this counts no padding.
        return torch.stack(
            [none if keep is None else (~keep).sum((1, 2)) for keep in self._members.masks]
        )


@dataclass(frozen=True, eq=False)
class _Previewed:
    """Copies of members after each action.

    Attributes:
        rows: member -> its row in the copies.
        changed: place of an action -> the copies after it.
    """

    rows: Mapping[int, int]
    changed: Mapping[int, Population]


@dataclass(frozen=True, eq=False)
class _Unread:
    """The figures of a training that the host has not read yet."""

    losses: Tensor
    metrics: PopulationMetrics
    num_steps: int

    @property
    def figures(self) -> list[Tensor]:
        """What to read, (N,) each."""
        metrics = self.metrics
        return [self.losses.double(), metrics.loss, metrics.accuracy, metrics.smooth]

    def checked(self, figures: Sequence[Tensor]) -> Performance:
        """Return the performance from the figures, once they have been read.

        Raises:
            DivergedError: a loss is not finite.
        """
        train_loss, loss, accuracy, smooth = figures
        check_finite(train_loss, f"in {self.num_steps} training steps")
        check_finite(loss, "on the validation rows")
        return Performance(accuracy.numpy(), smooth.numpy(), loss.numpy(), train_loss.numpy())


def why_not_stacked(task: Task) -> str | None:
    """Return why a task's networks cannot be stacked, or None if they can."""
    if mlp_layout(task.new_model(seed=0)) is None:
        return "its network is not nn.Sequential(Linear, ReLU, …, Linear)"
    if task.loss is not F.cross_entropy or task.metric is not METRICS["accuracy"].function:
        return "its loss is not cross_entropy or its metric is not accuracy"
    if task.precision == "bf16":
        return "its precision is bf16"
    try:
        x, _ = task.arrays("train")
    except DataError:
        return "its data come from loaders"
    return None if x.ndim == 2 and x.is_floating_point() else "its inputs are not float rows"


MlpFrame = tuple[tuple[str, ...], int, int]
"""What networks of one stack have in common: the names of layers, inputs and outputs."""


def stack_frame(task: Task) -> MlpFrame:
    """Return what the networks of tasks must have in common to share a stack."""
    layout = mlp_layout(task.new_model(seed=0))
    assert layout is not None, "why_not_stacked comes first"
    return layout.names, layout.num_inputs, layout.num_outputs


@lru_cache(maxsize=8)
def _joint_pool(tasks: tuple[Task, ...], start: StartConfig) -> tuple[Population, Performance]:
    """Return the networks of the pools of several tasks, task after task."""
    pools = [_pool(task, start) for task in tasks]
    if len(pools) == 1:
        return pools[0]
    joint = Population(tasks[0].new_model(seed=0), len(tasks) * start.num_starts)
    for place, (pool, _) in enumerate(pools):
        first = place * start.num_starts
        joint.copy_from(range(first, first + len(pool)), pool, range(len(pool)))
    figures = [[getattr(found, field.name) for _, found in pools] for field in fields(Performance)]
    return joint, Performance(*map(np.concatenate, figures))


@lru_cache(maxsize=256)
def _pool(task: Task, start: StartConfig) -> tuple[Population, Performance]:
    """Train the pool. It is never changed, so all environments of a process can share it.

    The networks equal those of `start_network` up to rounding. Training them stacked, one by one,
    takes a sixth of the time.
    """
    pool = Population(task.new_model(seed=0), start.num_starts)
    x, y = task.arrays("train")
    for index in range(start.num_starts):
        seed = start.first_start + index
        one = Population(task.new_model(seed=seed), 1)
        generator = torch.Generator().manual_seed(seed)
        rows = batch_rows(len(y), start.batch_size, start.steps_of(index), [generator])
        train_steps(one, x, y, rows, learning_rate=start.start_rate, momentum=start.momentum)
        pool.copy_from([index], one, [0])
    metrics = evaluate(pool, *task.arrays("validation"))
    return pool, _measured(metrics, evaluate(pool, x, y).loss.cpu().numpy())


def _measured(metrics: PopulationMetrics, train_loss: FloatArray) -> Performance:
    accuracy, smooth, loss = (
        figure.cpu().numpy() for figure in (metrics.accuracy, metrics.smooth, metrics.loss)
    )
    return Performance(accuracy, smooth, loss, train_loss)


def _num_nonzero_each(population: Population) -> tuple[Tensor, Tensor]:
    """Return the numbers of non-zero weights and of non-zero biases of each layer, (L, N) each."""
    return (
        torch.stack([weight.count_nonzero((1, 2)) for weight in population.weights]),
        torch.stack([bias.count_nonzero(1) for bias in population.biases]),
    )


def _num_nonzero(population: Population) -> Tensor:
    """Return the number of non-zero weights and biases of each network, (N,)."""
    weights, biases = _num_nonzero_each(population)
    return (weights + biases).sum(0)


def _costs(population: Population) -> FloatArray:
    """Return params, non-zero weights (as if none were zero), FLOPs and bytes, (N, 4)."""
    products = np.zeros(len(population))
    outputs = np.zeros(len(population))
    for layer in range(population.num_layers):
        sizes = population.sizes(layer)
        products += sizes[0] * sizes[1]
        outputs += sizes[0]
    params = products + outputs
    return np.stack([params, params, 2 * products, 4 * params], axis=1)
