"""The best of a ladder of cuts, by prediction."""

from dataclasses import dataclass

from dynopt_ray.errors import BudgetError
from dynopt_ray.policies.cuts.candidates import Cutting
from dynopt_ray.policies.cuts.policy import CutChoice
from dynopt_ray.policies.cuts.targets import WholeCut, ladder


@dataclass(frozen=True)
class LadderCut:
    """Try cuts of increasing size, each from the same network, and keep the best one.

    Each cut is compensated and measured on validation data before any training. The one with the
    largest smooth utility is made. So nothing is learned, and no training step is spent on the
    cuts that are not kept. The prediction is careful: it does not know how much of a loss training
    will recover.

    Attributes:
        cuts: the cuts to try. None takes those of `ladder`, which depend on the cost.
        criterion: ranks units and weights.
    """

    cuts: tuple[WholeCut, ...] | None = None
    criterion: str = "reconstruction"

    def choose(self, cutting: Cutting) -> CutChoice:
        """Return the cut with the largest smooth utility; of equals, the first.

        Raises:
            BudgetError: none of the cuts is possible.
        """
        cuts = ladder(cutting.cost) if self.cuts is None else self.cuts
        found = cutting.candidates(cuts, self.criterion)
        if not found:
            labels = "; ".join(cut.label for cut in cuts)
            raise BudgetError(f"LadderCut: none of these cuts can be made: {labels or 'no cuts'}")
        return CutChoice(max(found, key=lambda cut: cut.smooth_utility), tuple(found))
