"""`trace` a network, then edit it and compute its costs through the returned `Graph`."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dynopt_ray.errors import TraceError
from dynopt_ray.structure.description import TraceArguments, describe
from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans import Edit, Optimizers, Receipt, apply_plan
from dynopt_ray.structure.tracing import Heads, Inputs


class Graph(Network):
    """A live network and the width groups that can be resized. Made by `trace`.

    Attributes:
        model: the network itself; edits change it in place.
        groups: the width groups that can be resized, in forward order.
        fixed: the modules, parameters and dimensions of parameters that cannot be resized:
            name -> reason. A name that is also that of a group means another dimension.
        blocks: the modules that `Remove` can take out: name -> number of outputs after the first,
            or None if the module returns a single tensor. Such a module has parameters, takes a
            tensor as its first argument and returns one of the same shape, once per forward pass.
        arguments: the arguments of `trace`.
        receipts: receipts of the plans applied so far that were neither undone nor committed,
            oldest first.
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
        """Apply a plan to the network; see `dynopt_ray.structure.plans.application.apply_plan`."""
        # Inference mode would make weights that cannot be trained.
        with torch.inference_mode(mode=False):
            return apply_plan(self, plan, optimizer=optimizer, compensate=compensate, seed=seed)

    def commit(self) -> None:
        """Make all plans applied so far final, and free the memory that `undo` would need.

        Receipts hold copies of the network of before their plans. If plans are applied again and
        again (by a learner on a stream or an environment), that memory would grow without bound.
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
    """Find every width of a network that can be resized, and everything that must follow it.

    The network runs on the example inputs. It runs on the meta device if its forward pass allows
    that: with shapes only, without data or memory. The network is not changed.

    Args:
        model: any network.
        example_inputs: the inputs of one forward pass: a tensor, a tuple of arguments or a dict
            of keyword arguments. A batch of one is enough, unless modules that run only in
            training mode need more samples (BatchNorm in an auxiliary classifier). They should
            use every branch that arguments choose: what they do not reach is not traced.
        fixed: names of modules or parameters whose outputs must keep their width; a single name
            may be passed as a string.
        heads: what a unit of attention is: a whole head ("heads") or one coordinate of all heads
            ("dims"). If there is a single head when the network is traced, its coordinates are the
            units either way.

    Warns:
        UserWarning: the forward pass branches on values, the code of the network uses modules
            that the pass did not reach, or it states a width that cannot follow an edit.

    Raises:
        TraceError: the network does not run on these inputs, has no parameters, or is compiled or
            wrapped for distribution.
        UnknownNameError: `fixed` names nothing in the network, or `heads` is unknown.
    """
    names = (fixed,) if isinstance(fixed, str) else _names(fixed)
    arguments = TraceArguments(example_inputs, names, heads)
    return Graph(model, arguments, describe(model, arguments))


def _names(fixed: Iterable[str]) -> tuple[str, ...]:
    names = tuple(fixed) if isinstance(fixed, Iterable) else (fixed,)
    for name in names:
        if not isinstance(name, str):
            raise TraceError(
                f"fixed holds {name!r}; give the names of modules or parameters, such as 'layer1'"
            )
    return names
