"""Activation criterion: a unit that is rarely active, or feeds readers little, is unimportant."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.unit_inputs import (
    UnitInputs,
    group_readers,
    observed,
    readers_of,
    reading,
    weight_readers,
)
from dynopt_ray.errors import UnknownNameError
from dynopt_ray.structure import ObservedInputs, Reader, Use, WidthGroup, as_products

Measure = Literal["energy", "nonzero"]
_MEASURES: tuple[Measure, ...] = get_args(Measure)


def activation(*, measure: Measure = "energy") -> "Activation":
    """Score units by their activations on data, as the layers that read them receive them.

    Let x be the inputs of a layer that belong to a unit (all columns of a flattened channel, the
    window of a convolution), and W the weights that multiply them. A unit scores:

        energy: mean of ‖W x‖² over samples and places, summed over the layers that read the unit
        nonzero: fraction of the entries of x that are not zero, averaged over these layers

    If a layer is applied at many places of a sample, 8 places per sample are used.

    A single weight w with input x scores E(w x)² for "energy". For "nonzero" it scores the
    fraction of x that is not zero, or 0 if w is zero.

    Args:
        measure: "energy" or "nonzero". "nonzero" is useless if activations are never exactly
            zero, for example after GELU.

    Raises:
        UnknownNameError: `measure` is unknown.
        MissingGradientError: when scoring, no batches were given.
        CriterionError: when scoring, the inputs of a group or weight cannot be observed, for
            example because only recurrent layers read the group.

    References:
        Hu et al. 2016, "Network Trimming", eq. 1: APoZ, the average percentage of zeros;
        "nonzero" is 1 - APoZ. Sun et al. 2023, "A Simple and Effective Pruning Approach for
        Large Language Models" (Wanda), eq. 1: |w|·‖x‖, which ranks weights as "energy" does.
    """
    return Activation(measure)


@dataclass(frozen=True)
class Activation:
    """See `activation`."""

    measure: Measure = "energy"

    def __post_init__(self) -> None:
        if self.measure not in _MEASURES:
            raise UnknownNameError("activation measure", self.measure, _MEASURES)

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The energy that each unit contributes, or how often it is nonzero."""
        graph = evidence.graph
        sums: dict[tuple[str, str], Tensor] = {}
        counts: dict[str, int] = defaultdict(int)
        for batch in observed(graph, group_readers(graph), evidence.needed_batches):
            seen = {use: one.seen for use, one in batch.items()}
            for use, one in seen.items():
                counts[use[0]] += one.inputs_GRK.shape[1]
            for group in graph:
                for weight, total in self._totals(evidence, group, seen):
                    key = (group.name, weight)
                    sums[key] = sums[key] + total if key in sums else total
        scores: dict[str, list[Tensor]] = defaultdict(list)
        for (name, weight), total in sums.items():
            scores[name].append(total / counts[weight])
        over = torch.sum if self.measure == "energy" else torch.mean
        return {g.name: over(torch.stack(scores[g.name]), 0) for g in graph}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """The energy that each weight contributes, or how often its input is nonzero."""
        names = weight_readers(evidence)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = defaultdict(int)
        readers: dict[str, Reader] = {}
        for batch in observed(evidence.graph, names, evidence.needed_batches):
            for (name, _), one in batch.items():
                x_GRK = one.seen.inputs_GRK.double()
                total_GK = (x_GRK.square() if self.measure == "energy" else x_GRK != 0).sum(1)
                sums[name] = sums[name] + total_GK if name in sums else total_GK
                counts[name] += x_GRK.shape[1]
                readers.setdefault(name, one.seen.reader)
        scores = {}
        for name, reader in readers.items():
            mean_GK = sums[name] / counts[name]
            weight_GOK = as_products(evidence.weights[name], reader, len(mean_GK)).double()
            factor_GOK = weight_GOK.square() if self.measure == "energy" else weight_GOK != 0
            scores[name] = reader.in_layout(factor_GOK * mean_GK[:, None])
        return scores

    def _totals(
        self, evidence: Evidence, group: WidthGroup, seen: dict[Use, ObservedInputs]
    ) -> list[tuple[str, Tensor]]:
        """For each weight that reads a group: its name and its sums over rows, (U,)."""
        totals = []
        for s in readers_of(evidence.graph, group):
            weight = evidence.parameters[s.parameter]
            for (name, _), one in seen.items():
                if name == s.parameter:
                    how = reading(weight, one.reader, s, len(one.inputs_GRK))
                    totals.append((name, self._total(how, one.inputs_GRK)))
        return totals

    def _total(self, how: UnitInputs, x_GRK: Tensor) -> Tensor:
        x_UMRQ = how.of_units(x_GRK.float())
        if self.measure == "nonzero":
            return (x_UMRQ != 0).float().mean((1, 3)).sum(1)
        second_UMQQ = x_UMRQ.transpose(2, 3) @ x_UMRQ
        w_UMOQ = how.weights_of_units().float()
        return ((w_UMOQ @ second_UMQQ) * w_UMOQ).sum((1, 2, 3))
