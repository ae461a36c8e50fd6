"""One cut of fixed size."""

from dataclasses import dataclass

from dynopt_ray.errors import BudgetError
from dynopt_ray.policies.cuts.candidates import Cutting
from dynopt_ray.policies.cuts.policy import CutChoice
from dynopt_ray.policies.cuts.targets import WholeCut
from dynopt_ray.training import Fraction


@dataclass(frozen=True)
class SingleCut:
    """Cut fixed fractions of the units, the weights or both, whatever they cost.

    This is what a learned policy has to beat first.

    Attributes:
        remove_units: fraction of all units to remove, in (0, 1); None removes none.
        remove_weights: fraction of the weights that are left then to remove, in (0, 1); None
            removes none.
        criterion: ranks units and weights.

    Raises:
        ValueError: a fraction is out of range, or both are None.
    """

    remove_units: float | None = None
    remove_weights: float | None = None
    criterion: str = "reconstruction"

    def __post_init__(self) -> None:
        if self.remove_units is None and self.remove_weights is None:
            raise ValueError("SingleCut: give remove_units, remove_weights or both, such as 0.8")
        _ = self.cut  # checks the fractions

    @property
    def cut(self) -> WholeCut:
        """The cut."""
        units, weights = self.remove_units, self.remove_weights
        return WholeCut(
            units=None if units is None else Fraction(remove=units),
            weights=None if weights is None else Fraction(remove=weights),
        )

    def choose(self, cutting: Cutting) -> CutChoice:
        """Return the cut.

        Raises:
            BudgetError: fewer units or weights can be removed.
        """
        found = cutting.candidates([self.cut], self.criterion)
        if not found:
            raise BudgetError(
                f"SingleCut: the network cannot be cut to {self.cut.label}, because each group "
                "keeps at least one unit and each parameter at least one weight; remove less"
            )
        return CutChoice(found[0], tuple(found))
