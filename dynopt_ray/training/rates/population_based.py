"""Population-based learning rates: members that lag copy better ones and vary their rate.

Several networks of equal shapes train in parallel, each at its own learning rate. In each
observation they are ranked by loss. Each of the worst members copies weights, masks, optimizer
state and rate from one of the best, and multiplies the copied rate by a random factor. Bad rates
die out, and good rates are tried with variations, so a single training finds not only a rate but a
sequence of rates. A replaced member continues from the exact state of its source at another rate,
so its later losses judge this rate. At most half of the members are replaced at once, so no source
is overwritten in the same observation. All draws come from a separate random generator and leave
torch's generators alone.
"""

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
    """Makes a population of copies of one network, with rates around its optimizer's.

    Attributes:
        num_members: number of members including the network itself, at least 2.
        spread: ratio of the highest rate to the middle one, and of the middle one to the lowest,
            > 1.
        share: see `PopulationBasedRate`.
        factors: see `PopulationBasedRate`.
        seed: see `PopulationBasedRate`.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: an attribute is out of range.
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
        """Return the population: first the network itself, at the lowest rate, then its copies."""
        pairs = [(model, optimizer)]
        for _ in range(self.num_members - 1):
            # Copy both in one call, so that the copied optimizer refers to the copied network.
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
    """Lets the worst members copy the best ones and vary the copied learning rate.

    The n members train in parallel at their own rates. In each observation, the ⌊share · n⌋
    members with the largest losses (at least one) each copy the weights and the optimizer of a
    member drawn from equally many with the smallest losses. They then multiply its rate by one of
    the two factors, also drawn at random.

    Args:
        models: the networks, of equal shapes; two or more.
        optimizers: one for each network, all of the same kind. The rates of all groups of an
            optimizer are multiplied by the same factor.
        share: fraction of the members that are replaced, in (0, 0.5].
        factors: two factors for rates, each > 0.
        seed: seed of the random draws.

    Raises:
        TypeError: the seed is not a whole number, or a factor is not a number.
        EditError: an optimizer does not train its network.
        ValueError: there are fewer than two networks, the number of optimizers differs, a network
            or optimizer is given twice, networks differ in shape, optimizers differ in kind or
            groups, or a number is out of range.

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
                f"PopulationBasedRate: {len(models)} networks and {len(optimizers)} optimizers; "
                "give two or more networks, and an optimizer for each"
            )
        if len({id(one) for one in [*models, *optimizers]}) < 2 * len(models):
            raise ValueError(
                "PopulationBasedRate: a network or an optimizer is given twice; give copies"
            )
        if not 0 < share <= 0.5:
            raise ValueError(
                f"PopulationBasedRate: share is {share!r}; it must be above 0 and at most 0.5"
            )
        if not isinstance(factors, Sequence) or len(factors) != 2:
            raise ValueError(f"PopulationBasedRate: factors are {factors!r}; give two numbers > 0")
        for factor in factors:
            positive("PopulationBasedRate: one of the factors", factor)
        self.models, self.optimizers = tuple(models), tuple(optimizers)
        self.share, self.factors = share, factors
        self._random = random.Random(whole("PopulationBasedRate: seed", seed, least=0))
        self._check_members()

    @property
    def members(self) -> list[tuple[nn.Module, Optimizer]]:
        """Each network with its optimizer."""
        return list(zip(self.models, self.optimizers, strict=True))

    @property
    def lrs(self) -> list[float]:
        """The learning rate of each member's first group."""
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers]

    def observe(self, losses: Sequence[float]) -> list[int]:
        """Take one loss per member, e.g. of validation data, and replace the worst members.

        NaN counts as worse than any number.

        Returns:
            For each member, the index of the member whose state it has now: its own if it was not
            replaced.

        Raises:
            ValueError: the number of losses is wrong, or the shapes or optimizers of members
                differ since an edit. Nothing is changed.
        """
        if len(losses) != len(self.models):
            raise ValueError(
                f"PopulationBasedRate: {len(losses)} losses for {len(self.models)} members; give "
                "one for each"
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
        """Return the random state. Networks and optimizers have states of their own."""
        return {"random": self._random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the population whose `state_dict` this is."""
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))

    @torch.no_grad()
    def copy(self, source: int, member: int) -> None:
        """Copy weights, masks, optimizer state and rate from one member (`source`) to another."""
        self.models[member].load_state_dict(self.models[source].state_dict())
        masks = masked_parameters(self.models[source])
        for name in masks.keys() | masked_parameters(self.models[member]).keys():
            set_mask(self.models[member].get_parameter(name), masks.get(name))
        load_optimizer_state(self.optimizers[member], optimizer_state(self.optimizers[source]))

    def _check_members(self) -> None:
        """Refuse members that cannot copy each other's weights and optimizer states."""
        for model, optimizer in self.members:
            check_trains(optimizer, model)
        kinds = [
            (type(one).__name__, [len(group["params"]) for group in one.param_groups])
            for one in self.optimizers
        ]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"PopulationBasedRate: optimizer {number} is {kind[0]} over groups of "
                    f"{kind[1]} parameters, but the first is {kinds[0][0]} over {kinds[0][1]}; "
                    "make them alike"
                )
        first, *others = (shapes(model.state_dict()) for model in self.models)
        for number, other in enumerate(others, start=1):
            if other != first:
                raise ValueError(
                    f"PopulationBasedRate: network {number} has other shapes than the first; "
                    "members copy each other's weights, so resize all of them alike"
                )
