"""`trace` a network, then change its widths, masks and costs through the graph it returns."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from dynopt_ray.structure.description import Asked, describe
from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans import Edit, Optimizers, Receipt, apply_plan
from dynopt_ray.structure.tracing import Heads, Inputs


class Graph(Network):
    """A live network and the groups in which its widths can change. Made by `trace`.

    Attributes:
        model: the network itself; edits change it in place.
        groups: what can be resized, in forward order.
        fixed: what cannot be resized: name -> reason.
        blocks: the modules that `Remove` can take out: they take a tensor, as their first argument,
            and give one of the same shape, once per forward pass. Name -> number of outputs
            beside it, or None.
        asked: what the network was traced with.
        receipts: of the plans applied so far and not undone or committed, oldest first.
    """

    receipts: Sequence[Receipt]

    def __repr__(self) -> str:
        lines = [f"  {group.name}: {group.width}" for group in self.groups]
        return "\n".join([f"Graph of {type(self.model).__name__}, widths:", *lines])

    def apply(
        self,
        plan: Edit | Iterable[Edit],
        *,
        optimizer: Optimizers | None = None,
        compensate: Iterable[Inputs] | Tensor | None = None,
        seed: int | None = None,
    ) -> Receipt:
        """Change the network; see `dynopt_ray.structure.plans.application.apply_plan`."""
        return apply_plan(self, plan, optimizer=optimizer, compensate=compensate, seed=seed)

    def commit(self) -> None:
        """Make all plans applied so far final, and free what `undo` would need.

        Receipts hold the tensors that their plans replaced. Where plans are applied for ever (a
        learner on a stream, an environment), that memory would only grow.
        """
        for receipt in self.receipts:
            receipt.forget()
        self.receipts = []


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    fixed: str | Iterable[str] = (),
    heads: Heads = "heads",
) -> Graph:
    """Find every width of a network that can be resized, and all that must follow.

    The network runs on these inputs, on the meta device where its forward allows that: shapes
    only, no data, no memory. It is not changed.

    Args:
        model: any network.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of
            keyword arguments. A batch of one is enough where nothing runs in training mode only
            (BatchNorm in an auxiliary classifier).
        fixed: names of modules or parameters whose outputs must keep their width; a single one
            may be given as it is.
        heads: a unit of attention is a whole head ("heads") or one coordinate of all heads
            ("dims").

    Warns:
        UserWarning: the forward pass decides by values and did not reach some parameters.

    Raises:
        TraceError: the network does not run on these inputs or is wrapped for distribution.
        UnknownNameError: `fixed` names nothing of the network, or there is no such `heads`.
    """
    names = (fixed,) if isinstance(fixed, str) else tuple(fixed)
    asked = Asked(example_inputs, names, heads)
    return Graph(model, asked, describe(model, asked))
