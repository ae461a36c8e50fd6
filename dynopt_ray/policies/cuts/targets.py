"""How far a cut of the whole network goes, and ladders of such cuts."""

from collections.abc import Mapping
from dataclasses import dataclass

from dynopt_ray.policies.costs import CostMixture
from dynopt_ray.training import Budget, CutTarget, Fraction

_FLOPS = (1.0, 1 / 2, 1 / 4, 1 / 10)
_WEIGHTS = (1.0, 1 / 2, 1 / 5, 1 / 10)
_WEIGHTS_ALONE = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.02)


@dataclass(frozen=True)
class WholeCut:
    """A cut of the whole network: of units first, and of the weights that are left then.

    Attributes:
        units: how far to cut units; None removes none.
        weights: the fraction of weights to remove; None removes none.
    """

    units: CutTarget | None = None
    weights: Fraction | None = None

    @property
    def label(self) -> str:
        """What is kept, for tables: "flops to 0.25, weights to 0.5", or "keep"."""
        return ", ".join([*_units_label(self.units), *_weights_label(self.weights)]) or "keep"


def ladder(cost: CostMixture) -> tuple[WholeCut, ...]:
    """Return the cuts that `LadderCut` compares by default, which depend on what is charged for.

    - Only non-zero weights: all weights, and six cuts to 50, 25, 12, 6, 3 and 2 % of them.
    - Non-zero weights and others: units to 1, 1/2, 1/4 and 1/10 of the FLOPs, each followed by
      weights to 1, 1/2, 1/5 and 1/10 of those left. This makes sixteen.
    - No non-zero weights: only the four cuts of units.

    The first cut of each ladder removes nothing.
    """
    if cost.kinds == ("nonzero",):
        return tuple(WholeCut(weights=_weights_to(share)) for share in _WEIGHTS_ALONE)
    return tuple(
        WholeCut(None if flops == 1 else Budget(flops=flops), _weights_to(weights))
        for flops in _FLOPS
        for weights in (_WEIGHTS if "nonzero" in cost.kinds else (1.0,))
    )


def _weights_to(share: float) -> Fraction | None:
    return None if share == 1 else Fraction(remove=1 - share)


def _units_label(units: CutTarget | None) -> list[str]:
    if units is None:
        return []
    if isinstance(units, Fraction):
        return [f"units to {1 - units.remove:g}"]
    if isinstance(units, Mapping):
        return [f"widths {', '.join(f'{name}: {width}' for name, width in units.items())}"]
    return [f"{kind} to {getattr(units, kind):g}" for kind in units.kinds]


def _weights_label(weights: Fraction | None) -> list[str]:
    return [] if weights is None else [f"weights to {1 - weights.remove:g}"]
