"""The protocol of policies that cut a network once."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dynopt_ray.policies.cuts.candidates import CutCandidate, Cutting


@dataclass(frozen=True, eq=False)
class CutChoice:
    """What a policy decided.

    Attributes:
        chosen: the cut to make.
        compared: all cuts that were tried, the chosen one included.
    """

    chosen: CutCandidate
    compared: tuple[CutCandidate, ...]


@runtime_checkable
class CutPolicy(Protocol):
    """Chooses one cut of the whole network, before any training."""

    def choose(self, cutting: Cutting) -> CutChoice:
        """Return the chosen cut; the network is left as it is.

        Raises:
            BudgetError: no cut is possible.
        """
