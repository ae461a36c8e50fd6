"""Reconstruction criterion: a unit is important if the other units cannot replace it.

`prune` can refit the layers that read a removed unit by least squares on data, so a unit matters
only as far as the refit cannot reproduce its effect. For a layer with weights W and second moments
C of its inputs, the least mean squared error of the outputs that any change of the other weights
can reach without the inputs u is tr(W_u [(C⁻¹)_uu]⁻¹ W_uᵀ). This is the formula of the Optimal
Brain Surgeon for a set of inputs. The weights that reach this error are
W − W_u [(C⁻¹)_uu]⁻¹ (C⁻¹)_u·, and subtracting (C⁻¹)_·u [(C⁻¹)_uu]⁻¹ (C⁻¹)_u· from C⁻¹ gives the
inverse for the inputs that remain. A unit can therefore be removed without solving a regression.

Costs depend on which other units remain: each of two equal units can be removed at no cost, but
not both. Therefore units are eliminated in steps. Each step computes the costs of all remaining
units, removes the cheapest ones and refits the remaining weights. The refitted weights are again
a least-squares fit to the original outputs, so the formula also holds in the next step and gives
the error that is added to that of earlier steps. A unit scores the highest cost of any unit up to
its own elimination. Scores thus never decrease in the order of elimination, and removing all units
below a threshold removes exactly the first units of that order. Single weights are eliminated in
the same way, each row of W on its own.

Errors are weighted by half the mean square of the loss's gradient with respect to the outputs. As
for `hessian`, this estimates by how much the loss rises, so scores compare across layers.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence
from dynopt_ray.criteria.unit_inputs import (
    Observed,
    UnitInputs,
    group_readers,
    observed,
    readers_of,
    reading,
    weight_readers,
)
from dynopt_ray.errors import DivergedError
from dynopt_ray.structure import RIDGE, Consumer, Moments, as_products
from dynopt_ray.transfers import read_numbers, read_together, to_device

# Fraction of a row's remaining weights that a step keeps.
_LEFT = 0.7
LEAST_RIDGE = 1e-12
"""The smallest ridge, relative to the mean second moment of the inputs."""

# The remaining inputs are copied once one in _DROPPED inputs has been removed.
_DROPPED = 8
# Largest number of elements in the systems that are solved at once: 64 MiB.
_MOST_NUMBERS = 2**24


def reconstruction(*, weighted: bool = True, most_steps: int = 64) -> "Reconstruction":
    """Score units and weights by the error that remains after the others have been refitted.

    The units of a group are eliminated in steps. Each step removes the unit with the lowest cost
    and refits all remaining weights of the layers that read the group:

        cost(u) = Σ_layers tr(S W_u [(C⁻¹)_uu]⁻¹ W_uᵀ)

    C holds the second moments of a layer's inputs, about the mean if the layer or a BatchNorm
    after it can absorb a constant, plus a ridge of a hundredth of each input's own moment. W holds
    the layer's weights at that step. The diagonal matrix S weights the errors of the layer's
    outputs: by half the mean square of the loss's gradient with respect to each output, summed
    over the places of a sample, or all equally by 1 / tr(W C Wᵀ). If a layer is applied at many
    places of a sample, 8 places per sample are used. A unit scores the highest cost up to its
    elimination: of two equal units, the first one costs nothing, but the second one does not.
    Groups of more than `most_steps` units lose width // `most_steps` units per step.

    Single weights are eliminated in the same way, each row of W on its own, the cheapest 30 % of
    the remaining weights per step: cost(w_k) = s w_k² / [C⁻¹]_kk. Here w holds the refitted
    weights of the row, C the second moments of their inputs, and s is the row's entry of S.

    Args:
        weighted: whether errors are weighted by their effect on the loss, or all equally.
        most_steps: in how many steps the units of a group are eliminated; up to twice as many for
            groups that are little wider. At least 1.

    Raises:
        TypeError: `weighted` is not a bool, or `most_steps` not a whole number of at least 1.
        MissingGradientError: when scoring, batches are missing or, if `weighted`, the loss is.
        CriterionError: when scoring, the inputs of a group or weight cannot be observed: only
            recurrent layers read the group, or the weight is in no layer or product, such as
            that of an embedding.
        DivergedError: when scoring, the squares of a layer's inputs overflow.

    References:
        Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain
        Surgeon", eq. 5, for a single weight and the error of the loss. Here the formula is used
        for all weights that read a unit and for the error of a layer, as in Dong et al. 2017,
        "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon".
    """
    return Reconstruction(weighted, most_steps)


@dataclass(frozen=True)
class Reconstruction:
    """See `reconstruction`."""

    weighted: bool = True
    most_steps: int = 64
    compares_across = True

    def __post_init__(self) -> None:
        if not isinstance(self.weighted, bool):
            raise TypeError(f"reconstruction: weighted is {self.weighted!r}; pass True or False")
        if type(self.most_steps) is not int or self.most_steps < 1:
            raise TypeError(
                f"reconstruction: most_steps is {self.most_steps!r}; pass a whole number of at "
                "least 1"
            )

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        """The error that remains when a unit is removed and the others are refitted."""
        graph = evidence.graph
        found = self._found(evidence, group_readers(graph))
        scores = {}
        for group in graph:
            layers = []
            for s in readers_of(graph, group):
                statistics = found[s.parameter]
                second = statistics.second(graph.consumers[s.parameter][0])
                weight = evidence.parameters[s.parameter]
                how = reading(weight, statistics.reader, s, len(second))
                layers.append(_Layer(how, second, statistics.sensitivity_GO))
            scores[group.name] = _units_eliminated(layers, group.width, self.most_steps)
        return scores

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        """The error that remains when a weight is removed and the rest of its row is refitted."""
        scores = {}
        for name, statistics in self._found(evidence, weight_readers(evidence)).items():
            second_GKK = statistics.second(evidence.graph.consumers[name][0])
            reader, weight = statistics.reader, evidence.weights[name]
            weight_GOK = as_products(weight, reader, len(second_GKK))
            rows = zip(weight_GOK, _with_ridge(second_GKK), strict=True)
            lost_GOK = torch.stack([_weights_eliminated(*one) for one in rows]).double()
            if statistics.sensitivity_GO is not None:
                lost_GOK = lost_GOK * statistics.sensitivity_GO[..., None]
            else:
                lost_GOK = lost_GOK * _per_energy(weight_GOK.double(), second_GKK)
            scores[name] = reader.in_layout(lost_GOK)
        return scores

    def _found(self, evidence: Evidence, names: Collection[str]) -> dict[str, "_Statistics"]:
        """The sums over all batches, by the name of the weight."""
        batches, loss = evidence.needed if self.weighted else (evidence.needed_batches, None)
        found: dict[str, _Statistics] = {}
        for batch in observed(evidence.graph, names, batches, loss):
            for (name, _), one in batch.items():
                if name not in found:
                    found[name] = _Statistics(one)
                found[name].add(one)
        return found


def _with_ridge(second_GKK: Tensor) -> Tensor:
    """Add a ridge to second moments, and convert them to float32.

    The precision is enough for scores, and the matrices are large. The ridge is a fraction of
    each input's own moment. Therefore the scale of an input does not matter, and removing an
    input that is always zero costs next to nothing.

    Raises:
        DivergedError: the moments overflow.
    """
    own_GK = second_GKK.diagonal(dim1=1, dim2=2).clamp(min=0)
    least_G1 = LEAST_RIDGE * own_GK.mean(1, keepdim=True).clamp(min=1e-12)
    ridged = (second_GKK + torch.diag_embed(RIDGE * own_GK + least_G1)).float()
    if not bool(ridged.isfinite().all()):
        raise DivergedError("the input of a layer is so large that its squares overflow")
    return ridged


class _Solver:
    """Solves systems, and notes whether they can be solved; `check` raises if one cannot.

    To raise at once would make the host wait for a GPU at every step.
    """

    def __init__(self) -> None:
        self._failures: list[Tensor] = []

    def solve(self, matrices: Tensor, right: Tensor) -> Tensor:
        """Solve systems of equations."""
        found, info = torch.linalg.solve_ex(matrices, right)
        return self._noted(found, info)

    def cholesky(self, matrices: Tensor) -> Tensor:
        """Return Cholesky factors."""
        found, info = torch.linalg.cholesky_ex(matrices)
        return self._noted(found, info)

    def inverse(self, matrices: Tensor) -> Tensor:
        """Return the inverses of symmetric positive definite matrices."""
        return torch.cholesky_inverse(self.cholesky(matrices))

    def check(self) -> None:
        """Refuse results of systems that could not be solved.

        Raises:
            DivergedError: there was one.
        """
        failures, self._failures = self._failures, []
        if failures and any(read_numbers([torch.stack(failures).any()])):
            raise DivergedError(
                "the inputs of a layer are so large or so alike that their second moments cannot "
                "be inverted"
            )

    def _noted(self, found: Tensor, info: Tensor) -> Tensor:
        self._failures.append(info.any())
        return found


def _per_energy(weight_GOK: Tensor, second_GKK: Tensor) -> float:
    """1 / the energy of a layer's outputs; 0 if they are constant, so that nothing can be lost."""
    energy = float(((weight_GOK @ second_GKK) * weight_GOK).sum())
    return 1 / energy if energy > 0 else 0.0


class _Statistics:
    """Sums over batches for one weight."""

    def __init__(self, first: Observed) -> None:
        self.reader = first.seen.reader
        self.moments = Moments.start(first.seen.inputs_GRK.detach(), 1)
        self._squares_GO: Tensor | None = None

    def add(self, one: Observed) -> None:
        """Add a batch."""
        x_GRK = one.seen.inputs_GRK.detach()
        self.moments.add(x_GRK, x_GRK.new_zeros(*x_GRK.shape[:2], 1))
        if one.slopes_RGO is not None:
            squares = one.places * one.slopes_RGO.double().square().sum(0)
            self._squares_GO = squares if self._squares_GO is None else self._squares_GO + squares

    def second(self, consumer: Consumer) -> Tensor:
        """Second moments of the inputs, about the mean if the consumer can absorb a constant."""
        return self.moments.second(intercept=bool(consumer.bias or consumer.mean))

    @property
    def sensitivity_GO(self) -> Tensor | None:
        """How much the loss of a sample rises per squared error of each output, or None."""
        return None if self._squares_GO is None else self._squares_GO / (2 * self.moments.count)


class _Layer:
    """One layer that reads a group, while units of the group are eliminated."""

    def __init__(self, how: UnitInputs, second_GKK: Tensor, sensitivity_GO: Tensor | None) -> None:
        self.solver = _Solver()
        self._groups_UM, self._inputs_UMQ = how.groups_UM, how.inputs_UMQ
        weight_GOK = how.weight_GOK.double()
        if sensitivity_GO is not None:
            weight_GOK = weight_GOK * sensitivity_GO.sqrt()[:, :, None]
        self._inverse_GKK = self.solver.inverse(_with_ridge(second_GKK))
        is_weighted = sensitivity_GO is not None
        self._scale = 1.0 if is_weighted else _per_energy(weight_GOK, second_GKK)
        self._weight_GOK = weight_GOK.float()
        self._gone_GK = torch.zeros_like(self._weight_GOK[:, 0], dtype=torch.bool)
        self._num_gone = [0] * len(self._gone_GK)

    @property
    def device(self) -> torch.device:
        """The device of the layer's weight."""
        return self._weight_GOK.device

    def costs(self, units: Tensor) -> Tensor:
        """The costs of removing each of some units in the next step."""
        g, k = self._groups_UM[units][:, :, None], self._inputs_UMQ[units]
        own = self._inverse_GKK[g[..., None], k[..., None], k[:, :, None]]
        w = self._weight_GOK.transpose(1, 2)[g, k]  # (U, M, Q, O)
        costs: Tensor = (w * self.solver.solve(own, w)).sum((1, 2, 3)) * self._scale
        return costs

    def remove(self, units: Tensor) -> None:
        """Remove some units and refit the remaining weights."""
        for group, k in self._inputs_of(units).items():
            inverse = self._inverse_GKK[group]
            columns = inverse[:, k]
            solved = self.solver.solve(columns[k], columns.T)  # (q, K)
            weight = self._weight_GOK[group]
            weight.addmm_(weight[:, k], solved, alpha=-1)
            inverse.addmm_(columns, solved, alpha=-1)
            self._gone_GK[group].index_fill_(0, k, True)
            self._num_gone[group] += len(k)
        # Entries of removed inputs stay zero. They only cost time, but copying the rest does too.
        least, most = min(self._num_gone), max(self._num_gone)
        if least == most and _DROPPED * most >= self._gone_GK.shape[1]:
            self._drop(most)

    def _inputs_of(self, units: Tensor) -> dict[int, Tensor]:
        """Return the inputs that belong to some units, in order: group -> LongTensor."""
        if len(self._gone_GK) == 1:
            return {0: self._inputs_UMQ[units].flatten().sort().values}
        goes_GK = torch.zeros_like(self._gone_GK)
        goes_GK[self._groups_UM[units][:, :, None], self._inputs_UMQ[units]] = True
        (goes_GK,) = read_together([goes_GK])  # groups lose different numbers of inputs
        groups = goes_GK.any(1).nonzero()[:, 0].tolist()
        return {g: to_device(goes_GK[g].nonzero()[:, 0], self.device) for g in groups}

    def _drop(self, num_gone: int) -> None:
        """Drop the removed inputs, of which each group has equally many."""
        stays_GK = ~self._gone_GK
        at = _true_places(stays_GK, stays_GK.shape[1] - num_gone)  # (G, remaining inputs)
        self._gone_GK = torch.zeros_like(at, dtype=torch.bool)
        self._num_gone = [0] * len(at)
        groups = torch.arange(len(at), device=at.device)[:, None]
        self._inverse_GKK = self._inverse_GKK[groups[..., None], at[..., None], at[:, None]]
        self._weight_GOK = self._weight_GOK.transpose(1, 2)[groups, at].transpose(1, 2)
        places_GK = (stays_GK.cumsum(1) - 1).clamp(min=0)
        self._inputs_UMQ = places_GK[self._groups_UM[:, :, None], self._inputs_UMQ]


def _units_eliminated(layers: list[_Layer], width: int, most_steps: int) -> Tensor:
    """Eliminate all units of a group; the highest cost up to each unit's turn, (width,)."""
    device = layers[0].device
    scores = torch.zeros(width, dtype=torch.float64, device=device)
    left = torch.arange(width, device=device)
    dearest = scores.new_zeros(())
    per_step = max(1, width // most_steps)
    while len(left):
        each = [layer.costs(left.to(layer.device)).double().to(device) for layer in layers]
        least, first = torch.stack(each).sum(0).topk(min(per_step, len(left)), largest=False)
        # A cost that is NaN does not count.
        highest = torch.fmax(least, dearest).cummax(0).values
        scores[left[first]] = highest
        dearest = highest[-1]
        for layer in layers if len(first) < len(left) else ():
            layer.remove(left[first].to(layer.device))
        stays = torch.ones_like(left, dtype=torch.bool).index_fill_(0, first, False)
        left = left[_true_places(stays, len(left) - len(first))]
    for layer in layers:
        layer.solver.check()
    return scores.cpu()


def _true_places(stays: Tensor, number: int) -> Tensor:
    """Return where a bool tensor is True along its last dimension, `number` times in each row.

    `nonzero` would make the host wait for a GPU to know the number.
    """
    return (~stays).to(torch.int8).argsort(dim=-1, stable=True)[..., :number]


def _weights_eliminated(weight_OK: Tensor, second_KK: Tensor) -> Tensor:
    """Eliminate all weights of each row; the highest cost up to each weight's turn, (O, K)."""
    scores = torch.zeros_like(weight_OK, dtype=torch.float32)
    wanted_OK = weight_OK.float() @ second_KK
    solver = _Solver()
    precision_K = solver.inverse(second_KK[None])[0].diagonal()
    num_outputs, num_inputs = weight_OK.shape
    num_at_once = max(1, _MOST_NUMBERS // num_inputs**2)
    for rows in torch.split(torch.arange(num_outputs, device=weight_OK.device), num_at_once):
        # (R, remaining weights of a row)
        left = torch.arange(num_inputs, device=weight_OK.device).expand(len(rows), -1)
        weight, precision = weight_OK[rows].float(), precision_K.expand(len(rows), -1)
        dearest = scores.new_zeros(len(rows), 1)
        while left.shape[1]:
            num_going = left.shape[1] - int(_LEFT * left.shape[1])
            costs, first = (weight.square() / precision).topk(num_going, largest=False)
            costs = torch.maximum(costs, dearest)
            scores[rows[:, None], left.gather(1, first)] = costs
            dearest = costs[:, -1:]
            stays = torch.ones_like(left, dtype=torch.bool).scatter(1, first, False)
            left = left.gather(1, _true_places(stays, left.shape[1] - num_going))
            wanted = wanted_OK[rows].gather(1, left)
            weight, precision = _refitted(wanted, second_KK, left, solver)
    solver.check()
    return scores


def _refitted(
    wanted: Tensor, second_KK: Tensor, left: Tensor, solver: _Solver
) -> tuple[Tensor, Tensor]:
    """The remaining weights of some rows, refitted, and the diagonal of their C⁻¹."""
    factor = solver.cholesky(second_KK[left[:, :, None], left[:, None]])
    weight = torch.cholesky_solve(wanted[..., None], factor)[..., 0]
    return weight, torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
