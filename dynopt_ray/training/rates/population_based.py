"""Population: rates that are bred, as in population based training."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.structure import check_trains, masked_parameters, set_mask
from dynopt_ray.training.loop import load_optimizer_state, optimizer_state
from dynopt_ray.training.numbers import positive, whole
from dynopt_ray.training.rates.controller import set_rates, shapes


@dataclass(frozen=True)
class PopulationStart:
    """A population of copies of one network, at rates around its optimizer's.

    Attributes:
        num_members: how many, the network itself among them; two or more.
        spread: the highest rate over the middle one, and that over the lowest; > 1.
        share: see `PopulationBasedRate`.
        factors: see `PopulationBasedRate`.
        seed: see `PopulationBasedRate`.

    Raises:
        ValueError: a number out of range.
    """

    num_members: int = 4
    spread: float = 4.0
    share: float = 0.25
    factors: tuple[float, float] = (0.8, 1.2)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("population: num_members", self.num_members, least=2)
        if not 1 < self.spread < float("inf"):
            raise ValueError(f"population: spread is {self.spread!r}; it must be > 1")
        some: list[nn.Module] = [nn.Linear(1, 1) for _ in range(2)]
        self._of(some, [torch.optim.SGD(model.parameters()) for model in some])

    def __call__(self, model: nn.Module, optimizer: Optimizer) -> "PopulationBasedRate":
        """Its members: the network as the first, at the lowest rate, and copies of it."""
        pairs = [(model, optimizer)]
        for _ in range(self.num_members - 1):
            # Together, so that the copied optimizer trains the copied network.
            pairs.append(copy.deepcopy((model, optimizer)))
            for parameter, keep in masked_parameters(model).items():
                set_mask(pairs[-1][0].get_parameter(parameter), keep)
        for number, (_, other) in enumerate(pairs):
            away = 2 * number / (self.num_members - 1) - 1
            for group in other.param_groups:
                group["lr"] = group["lr"] * self.spread**away
        return self._of(*map(list, zip(*pairs, strict=True)))

    def _of(self, models: list[nn.Module], optimizers: list[Optimizer]) -> "PopulationBasedRate":
        return PopulationBasedRate(
            models, optimizers, share=self.share, factors=self.factors, seed=self.seed
        )


class PopulationBasedRate:
    """Trainings that lag take over from those ahead, and vary their learning rate.

    Of n members, trained side by side at rates of their own, the last ⌊share · n⌋ by loss (at
    least one) each copy the weights and the optimizer of one of as many at the top, drawn at
    random, and multiply its rate by one of two factors, drawn too.

    Args:
        models: the networks, of equal shapes; two or more.
        optimizers: one over each, of the same kind; all groups' rates are varied alike.
        share: of the members that take over, in (0, 0.5].
        factors: what a rate is multiplied with, each > 0.
        seed: of what is drawn.

    Raises:
        TypeError: a seed that is no whole number, or factors that are no numbers.
        EditError: an optimizer that does not train its network.
        ValueError: fewer than two networks, another number of optimizers, one of them twice,
            networks of other shapes, optimizers of other kinds or groups, or a number out of range.

    References:
        Jaderberg et al. 2017, "Population Based Training of Neural Networks": truncation selection
        and perturbation, with the paper's 20 % and factors of 0.8 and 1.2.

    Example:
        >>> models = [nn.Linear(2, 1) for _ in range(4)]
        >>> optimizers = [
        ...     torch.optim.SGD(m.parameters(), lr=lr)
        ...     for m, lr in zip(models, (0.1, 0.2, 0.3, 0.4), strict=True)
        ... ]
        >>> rates = PopulationBasedRate(models, optimizers, seed=0)
        >>> rates.observe([0.5, 0.1, 0.7, 0.6])  # the third takes over from the second
        [0, 1, 1, 3]
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        *,
        share: float = 0.2,
        factors: tuple[float, float] = (0.8, 1.2),
        seed: int = 0,
    ) -> None:
        if len(models) < 2 or len(models) != len(optimizers):
            raise ValueError(
                f"Population: {len(models)} networks and {len(optimizers)} optimizers; give two or "
                "more networks, and an optimizer for each"
            )
        if len({id(one) for one in [*models, *optimizers]}) < 2 * len(models):
            raise ValueError("Population: a network or an optimizer is there twice; give copies")
        if not 0 < share <= 0.5:
            raise ValueError(f"Population: share is {share!r}; it must be above 0 and at most 0.5")
        if not isinstance(factors, Sequence) or len(factors) != 2:
            raise ValueError(f"Population: factors are {factors!r}; give two numbers > 0")
        for factor in factors:
            positive("Population: one of the factors", factor)
        self.models, self.optimizers = tuple(models), tuple(optimizers)
        self.share, self.factors = share, factors
        self._random = random.Random(whole("Population: seed", seed, least=0))
        self._check_members()

    @property
    def members(self) -> list[tuple[nn.Module, Optimizer]]:
        """Each network with its optimizer."""
        return list(zip(self.models, self.optimizers, strict=True))

    @property
    def lrs(self) -> list[float]:
        """The rate of each member's first group."""
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers]

    def observe(self, losses: Sequence[float]) -> list[int]:
        """Take a loss of each member, of validation data say; NaN counts as worse than any.

        Returns:
            For each member whom it goes on from; itself where it stays.

        Raises:
            ValueError: another number of losses, or shapes or optimizers that differ since an edit.
                Nothing has been changed.
        """
        if len(losses) != len(self.models):
            raise ValueError(
                f"Population: {len(losses)} losses for {len(self.models)} members; give one each"
            )
        self._check_members()
        sources = list(range(len(losses)))
        ranked = sorted(
            sources, key=lambda i: float("inf") if losses[i] != losses[i] else losses[i]
        )
        few = max(1, int(self.share * len(losses)))
        for member in ranked[-few:]:
            sources[member] = self._random.choice(ranked[:few])
            self.copy(sources[member], member)
            factor = self._random.choice(self.factors)
            set_rates(self.optimizers[member], factor.__mul__)
        return sources

    def state_dict(self) -> dict[str, Any]:
        """What later draws depend on; networks and optimizers have states of their own."""
        return {"random": self._random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that gave `state`."""
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))

    @torch.no_grad()
    def copy(self, source: int, member: int) -> None:
        """Make a member equal another, in weights, masks, optimizer and rate."""
        self.models[member].load_state_dict(self.models[source].state_dict())
        masks = masked_parameters(self.models[source])
        for name in masks.keys() | masked_parameters(self.models[member]).keys():
            set_mask(self.models[member].get_parameter(name), masks.get(name))
        load_optimizer_state(self.optimizers[member], optimizer_state(self.optimizers[source]))

    def _check_members(self) -> None:
        """Members that can take over each other's weights and optimizer states."""
        for model, optimizer in self.members:
            check_trains(optimizer, model)
        kinds = [
            (type(one).__name__, [len(group["params"]) for group in one.param_groups])
            for one in self.optimizers
        ]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"Population: optimizer {number} is {kind[0]} over groups of {kind[1]} "
                    f"parameters, the first {kinds[0][0]} over {kinds[0][1]}; make them alike"
                )
        first, *others = (shapes(model.state_dict()) for model in self.models)
        for number, other in enumerate(others, start=1):
            if other != first:
                raise ValueError(
                    f"Population: network {number} has other shapes than the first; members take "
                    "over each other's weights, so resize all of them alike"
                )
