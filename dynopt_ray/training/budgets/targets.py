"""Targets: how far to prune or to grow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from dynopt_ray.structure import Cost, CostKind
from dynopt_ray.training.numbers import positive, share

COST_KINDS: tuple[CostKind, ...] = get_args(CostKind)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on one cost or several: fractions of the starting cost, or figures.

    `Budget(flops=0.5)` is half of the FLOPs that the network has at the start,
    `Budget.absolute(latency_ms=3.5)` a figure. All limits named have to hold.

    Attributes:
        params: number of parameters.
        nonzero: number of parameters that are not zero. Where compensation or training follows,
            which fill the zeros that no mask holds, only those that one holds count as zero.
        flops: floating-point operations of one sample's forward pass.
        bytes: memory of parameters and buffers.
        latency_ms: milliseconds of one sample's forward pass, measured where the network is.
        is_absolute: whether the limits are figures instead of fractions.

    Raises:
        ValueError: no limit at all, or one that is not finite and > 0.
        TypeError: a limit that is no number.
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
        """A budget in figures, e.g. `Budget.absolute(params=100_000)`."""
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
        """The costs that are limited."""
        return tuple(self._named)

    def limits(self, start: Cost, share: float = 1.0) -> dict[CostKind, float]:
        """The largest value allowed of each cost that is limited.

        Args:
            start: what fractions are of.
            share: how much of the way from the start to the limit, in [0, 1].

        Raises:
            ValueError: the start was measured without a latency, and a fraction of it is asked.
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
    """Remove a share of all units (or weights), in each layer or overall as the scope says.

    Weights that are masked already count as removed; units that went before count no more.

    Attributes:
        remove: the share that goes, in (0, 1).

    Raises:
        ValueError: outside that range.
    """

    remove: float

    def __post_init__(self) -> None:
        share("Fraction: remove", self.remove)


@dataclass(frozen=True)
class Threshold:
    """Remove everything whose score is below a value.

    Scores are those of the criterion, as `unit_scores` and `weight_scores` give them.

    Attributes:
        value: the threshold, > 0.

    Raises:
        ValueError: not a finite number > 0; scores are never below 0.
    """

    value: float

    def __post_init__(self) -> None:
        positive("Threshold: value", self.value)


Target = Budget | Fraction | Threshold | Mapping[str, int]
"""How far to prune. A mapping gives groups the number of units they keep."""


def asks_latency(target: object) -> bool:
    """Whether a target limits the latency, which has to be measured."""
    return isinstance(target, Budget) and target.latency_ms is not None


def fractions_hint(target: object) -> str:
    """What to add to an error about a budget whose fractions may have been meant as figures."""
    if isinstance(target, Budget) and not target.is_absolute:
        return "; its limits are fractions of the start, figures are Budget.absolute(…)"
    return ""
