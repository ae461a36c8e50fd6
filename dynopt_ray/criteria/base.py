"""The criterion protocol, and the evidence that a criterion scores by."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dynopt_ray.criteria.gradients import Batch, mean_gradients, sample_gradients
from dynopt_ray.criteria.row_mixing import separate_rows
from dynopt_ray.errors import MissingGradientError
from dynopt_ray.structure import Graph

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, targets) -> scalar tensor, the mean loss over the batch."""

_SMALLEST_WEIGHT_NDIM = 2


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may use: a network and, if given, data and a loss.

    `parameters` and `gradients` are computed once and cached.

    Attributes:
        graph: the traced network. A criterion never changes it.
        batches: (inputs, targets) of samples that the network has been trained on, or None.
        loss: the loss that the network minimises, or None.
        only: names of the parameters whose single weights are scored; None for all that can be
            scored.
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

        Biases and the scales of normalisations are left out: they are few, and zeros in them
        save nothing.
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
        """The gradients of single samples; see `criteria.sample_gradients`.

        Raises:
            MissingGradientError: as for `gradients`.
            DivergedError: as for `gradients`.
        """
        return sample_gradients(self.graph.model, *self.needed)

    @property
    def needed_batches(self) -> Iterable[Batch]:
        """The batches, for a criterion that uses activations.

        Raises:
            MissingGradientError: no batches were given.
        """
        if self.batches is None:
            raise MissingGradientError(
                "this criterion uses activations, so it needs data: pass batches=…, "
                "e.g. batches=task.batches('train')"
            )
        return self.batches

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU if there are no parameters."""
        return next((p.device for p in self.parameters.values()), torch.device("cpu"))

    @property
    def needed(self) -> tuple[Iterable[Batch], Loss]:
        """The batches and the loss, for a criterion that uses gradients.

        Raises:
            MissingGradientError: no batches or no loss were given.
        """
        if self.batches is None or self.loss is None:
            raise MissingGradientError(
                "this criterion uses gradients, so it needs data: pass batches=… and loss=…, "
                "e.g. batches=task.batches('train'), loss=task.loss"
            )
        return self.batches, separate_rows(self.loss, "loss")


class Criterion(Protocol):
    """Scores the units or weights of a network; larger = more important.

    Criteria are pure: the same evidence gives the same scores. `unit_scores` and
    `weight_scores` of this package check the returned scores; `check_criterion` of
    `dynopt_ray.testing` checks the rest of the contract.

    A criterion whose scores mean the same in every layer has an attribute
    `compares_across = True`. The scores of all other criteria are divided by one number per
    group before groups are compared (see `comparable`).
    """

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return group name -> Tensor (width,), for every group of the graph."""

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return parameter name -> tensor of its shape, for each of `evidence.weights`.

        Raises:
            TypeError: the criterion scores units only.
        """
