"""What a criterion is, and what it may look at."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dynopt_ray.criteria.gradients import Batch, mean_gradients, sample_gradients
from dynopt_ray.errors import MissingGradientError
from dynopt_ray.structure import Graph

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, targets) -> scalar tensor, the mean over the batch."""

_SMALLEST_WEIGHT_NDIM = 2


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at: a network and, where given, data.

    What is computed from it is computed once and shared by all who ask.

    Attributes:
        graph: the traced network. A criterion never changes it.
        batches: (inputs, targets) of samples that the network has learned from, or None.
        loss: what the network minimises, or None.
        only: the parameters whose single weights are scored; None for all that can be.
    """

    graph: Graph
    batches: Iterable[Batch] | None = None
    loss: Loss | None = None
    only: Collection[str] | None = None

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name, detached. Buffers (running statistics) are never scored."""
        return {name: p.detach() for name, p in self.graph.model.named_parameters()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters whose single weights are scored: those of two or more dimensions.

        Biases and the scales of normalisations are few, and zeros in them save nothing.
        """
        return {
            name: p
            for name, p in self.parameters.items()
            if p.ndim >= _SMALLEST_WEIGHT_NDIM and (self.only is None or name in self.only)
        }

    @cached_property
    def gradients(self) -> Mapping[str, Tensor]:
        """The gradient of the mean loss over all samples of all batches, by parameter name.

        Raises:
            MissingGradientError: no batches or no loss were given, or the loss does not depend
                on some parameter.
            DivergedError: the loss is not finite.
        """
        return mean_gradients(self.graph.model, *self.needed)

    def sample_gradients(self) -> Iterator[dict[str, Tensor]]:
        """The gradients of single samples; see `sample_gradients`.

        Raises:
            MissingGradientError: as for `gradients`.
            DivergedError: as for `gradients`.
        """
        return sample_gradients(self.graph.model, *self.needed)

    @property
    def needed_batches(self) -> Iterable[Batch]:
        """The batches, for a criterion that looks at activations.

        Raises:
            MissingGradientError: none were given.
        """
        if self.batches is None:
            raise MissingGradientError(
                "this criterion looks at activations, so it needs data: pass batches=…, "
                "e.g. batches=task.batches('train')"
            )
        return self.batches

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next((p.device for p in self.parameters.values()), torch.device("cpu"))

    @property
    def needed(self) -> tuple[Iterable[Batch], Loss]:
        """The batches and the loss, for a criterion that looks at gradients."""
        if self.batches is None or self.loss is None:
            raise MissingGradientError(
                "this criterion looks at gradients, so it needs data: pass batches=… and loss=…, "
                "e.g. batches=task.batches('train'), loss=task.loss"
            )
        return self.batches, self.loss


class Criterion(Protocol):
    """Scores what could be removed from a network; larger = more important.

    Criteria are values: the same evidence gives the same scores. `unit_scores` and
    `weight_scores` of this package check what they return; `check_criterion` of
    `dynopt_ray.testing` checks the rest.

    A criterion whose scores mean the same in every layer says so with an attribute
    `compares_across = True`; scores of others are divided by a figure of their group before
    groups are compared.
    """

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """Group name -> Tensor (width,), for every group of the graph."""

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """Parameter name -> tensor of its shape, for each of `evidence.weights`.

        Raises:
            TypeError: the criterion is only for units.
        """
