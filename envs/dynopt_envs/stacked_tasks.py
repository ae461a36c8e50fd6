"""The data of several tasks whose networks share a stack.

Shapes: T tasks, R rows, I inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies import NUM_COMPENSATION_ROWS
from dynopt_ray.population import Population, PopulationMetrics, batch_rows, evaluate
from dynopt_ray.tasks import Task
from dynopt_ray.transfers import array_to_device


@dataclass(frozen=True, eq=False)
class StackedTasks:
    """Training and validation rows of tasks, and for each of them where its rows are.

    Attributes:
        x: training rows of all tasks, one after the other, (sum of rows, I).
        y: their classes.
        starts: first training row of each task.
        counts: number of training rows of each task.
        validation: validation rows (T, R, I) and classes (T, R), and which are not padding (T, R).
        samples: training rows for compensation (T, R, I) and their classes (T, R): equally many of
            each task, `NUM_COMPENSATION_ROWS` or as many as the smallest one has.
    """

    x: Tensor
    y: Tensor
    starts: list[int]
    counts: list[int]
    validation: tuple[Tensor, Tensor, Tensor]
    samples: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> "StackedTasks":
        """Stack the data of tasks."""
        training = [task.arrays("train") for task in tasks]
        held_out = [task.arrays("validation") for task in tasks]
        counts = [len(y) for _, y in training]
        some = slice(min(NUM_COMPENSATION_ROWS, *counts))
        valid = pad_sequence([torch.ones_like(y, dtype=torch.bool) for _, y in held_out], True)
        return cls(
            x=torch.cat([x for x, _ in training]),
            y=torch.cat([y for _, y in training]),
            starts=[sum(counts[:place]) for place in range(len(counts))],
            counts=counts,
            validation=(
                pad_sequence([x for x, _ in held_out], True),
                pad_sequence([y for _, y in held_out], True),
                valid,
            ),
            samples=(
                torch.stack([x[some] for x, _ in training]),
                torch.stack([y[some] for _, y in training]),
            ),
        )

    def rows(
        self,
        tasks: IntArray,
        generators: Sequence[torch.Generator],
        *,
        batch_size: int,
        num_steps: int,
    ) -> Tensor:
        """Return the rows of the batches of networks; see `batch_rows`.

        Args:
            tasks: the task of each network.
            generators: the generator of each network.
            batch_size: rows per batch; at most as many as the smallest task has.
            num_steps: number of batches.
        """
        batch_size = min(batch_size, *self.counts)
        return torch.cat(
            [
                batch_rows(self.counts[task], batch_size, num_steps, [generator])
                + self.starts[task]
                for task, generator in zip(tasks, generators, strict=True)
            ],
            1,
        )

    def evaluate(self, population: Population, tasks: IntArray) -> PopulationMetrics:
        """Return the unchecked metrics of networks on the validation rows of their own tasks."""
        x, y, valid = self.validation
        if len(self.counts) == 1:
            return evaluate(population, x, y, check=False)
        places = array_to_device(tasks, x.device)
        return evaluate(population, x[places], y[places], valid_PN=valid[places], check=False)

    def samples_of(self, tasks: IntArray) -> tuple[Tensor, Tensor]:
        """Return training rows of networks' own tasks; without member dimension if there is one."""
        if len(self.counts) == 1:
            return self.samples[0][0], self.samples[1][0]
        places = array_to_device(tasks, self.x.device)
        return self.samples[0][places], self.samples[1][places]
