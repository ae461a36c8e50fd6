"""Targets: how far to prune or to grow a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from dynopt_ray.structure import Cost, CostKind
from dynopt_ray.training.numbers import positive, share

COST_KINDS: tuple[CostKind, ...] = get_args(CostKind)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on one or several costs, as fractions of the starting cost or as absolute values.

    `Budget(flops=0.5)` allows half of the network's FLOPs at the start.
    `Budget.absolute(latency_ms=3.5)` allows 3.5 milliseconds. All limits must hold together.

    Attributes:
        params: number of parameters.
        nonzero: number of parameters that are not zero. If compensation or training follows, only
            masked entries count as zero, because both fill unmasked zeros.
        flops: floating-point operations of the forward pass of one sample.
        bytes: memory of parameters and buffers.
        latency_ms: milliseconds of the forward pass of one sample, measured on the network's
            device.
        is_absolute: whether the limits are absolute values instead of fractions.

    Raises:
        ValueError: there is no limit, or a limit is not finite and > 0.
        TypeError: a limit is not a number.
    """

    params: float | None = None
    nonzero: float | None = None
    flops: float | None = None
    bytes: float | None = None
    latency_ms: float | None = None
    is_absolute: bool = False

    def __post_init__(self) -> None:
        if not self._named:
            raise ValueError(
                "Budget() limits nothing. Name a cost and the fraction of it to keep, e.g. "
                f"Budget(flops=0.5); costs: {', '.join(COST_KINDS)}"
            )
        for kind, value in self._named.items():
            positive(f"Budget: {kind}", value)

    @classmethod
    def absolute(
        cls,
        *,
        params: float | None = None,
        nonzero: float | None = None,
        flops: float | None = None,
        bytes: float | None = None,
        latency_ms: float | None = None,
    ) -> "Budget":
        """Return a budget of absolute values, e.g. `Budget.absolute(params=100_000)`.

        FLOPs and latency are those of one sample; `Graph.cost` counts all example inputs instead.
        """
        return cls(
            params=params,
            nonzero=nonzero,
            flops=flops,
            bytes=bytes,
            latency_ms=latency_ms,
            is_absolute=True,
        )

    @property
    def kinds(self) -> tuple[CostKind, ...]:
        """The kinds of cost that the budget limits."""
        return tuple(self._named)

    def limits(self, start: Cost, share: float = 1.0) -> dict[CostKind, float]:
        """Return the largest allowed value of each limited cost.

        Args:
            start: the cost at the start, which fractions refer to.
            share: fraction of the way from the start to the limit, in [0, 1].

        Raises:
            ValueError: the budget limits the latency, but the latency at the start, which is
                needed for this, was not measured.
        """
        if self.is_absolute and share == 1:
            return self._named
        if self.latency_ms is not None and start.latency_ms is None:
            raise ValueError(
                "Budget: latency_ms is a fraction of a latency that was not measured; measure "
                "with latency=True, or use Budget.absolute(latency_ms=…)"
            )
        costs: dict[CostKind, float] = {kind: getattr(start, kind) for kind in self._named}
        wanted = {
            kind: value if self.is_absolute else value * costs[kind]
            for kind, value in self._named.items()
        }
        return {kind: wanted[kind] * share + costs[kind] * (1 - share) for kind in wanted}

    @property
    def _named(self) -> dict[CostKind, float]:
        values: Mapping[CostKind, float | None] = {kind: getattr(self, kind) for kind in COST_KINDS}
        return {kind: value for kind, value in values.items() if value is not None}

    def __repr__(self) -> str:
        limits = ", ".join(f"{kind}={value!r}" for kind, value in self._named.items())
        return f"Budget{'.absolute' if self.is_absolute else ''}({limits})"


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """Remove a fraction of all units (or weights).

    The scope of `prune` decides whether the fraction applies to each layer or to the whole network.
    Weights that are masked already count as removed. Units that were removed before the call do not
    count at all.

    Attributes:
        remove: the fraction to remove, in (0, 1).

    Raises:
        ValueError: the fraction is outside this range.
    """

    remove: float

    def __post_init__(self) -> None:
        share("Fraction: remove", self.remove)


@dataclass(frozen=True)
class Threshold:
    """Remove every unit (or weight) whose score is below a value.

    The scores are those that `unit_scores` and `weight_scores` return for the criterion.

    Attributes:
        value: the threshold, > 0.

    Raises:
        ValueError: the threshold is not a finite number > 0. Scores are never below 0.
    """

    value: float

    def __post_init__(self) -> None:
        positive("Threshold: value", self.value)


Target = Budget | Fraction | Threshold | Mapping[str, int]
"""How far to prune. A mapping is group name -> number of units to keep."""


def asks_latency(target: object) -> bool:
    """Return whether a target limits the latency, which then has to be measured."""
    return isinstance(target, Budget) and target.latency_ms is not None


def fractions_hint(target: object) -> str:
    """Return a hint for error messages, in case the user meant fractions as absolute values."""
    if isinstance(target, Budget) and not target.is_absolute:
        return "; its limits are fractions of the start, absolute values are Budget.absolute(…)"
    return ""
