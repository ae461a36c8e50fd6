"""A traced network: the model and the description that plans read and change."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol

from torch import Tensor, nn

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure.costs import Cost, UnreadCost, nonzero_counts, read_costs
from dynopt_ray.structure.description import Description, TraceArguments
from dynopt_ray.structure.preserve import masked_parameters, set_masks
from dynopt_ray.structure.tracing import named_tensors
from dynopt_ray.structure.units import WidthGroup

_MASKS = "masks of the network"


class AppliedPlan(Protocol):
    """A plan that was applied and can be undone."""

    def undo(self) -> None:
        """Restore everything that the plan touched."""

    def forget(self) -> None:
        """Give up `undo` and free the tensors it would need."""


class Network:
    """A live network with its description, which edits keep up to date.

    Attributes:
        model: the network itself; edits change it in place.
        arguments: the arguments of `trace`.
        shapes: the shapes of its tensors after the last edit; `check` compares against them.
        receipts: receipts of the plans applied so far, oldest first.
        num_edits: the number of times its widths were changed. The random weights of new units
            depend on it, so `undo` does not lower it.

    The other attributes are those of `Description`.
    """

    def __init__(
        self, model: nn.Module, arguments: TraceArguments, description: Description
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.groups = description.groups
        self.index = description.index
        self.fixed = description.fixed
        self.attributes = description.attributes
        self.caches = description.caches
        self.consumers = description.consumers
        self.blocks = description.blocks
        self.weight_norms = description.weight_norms
        self.nonlinear = description.nonlinear
        self.cost_model = description.cost_model
        self.output_sizes = description.output_sizes
        self.receipts: Sequence[AppliedPlan] = []
        self.num_edits = 0
        self.shapes = self.shapes_now()

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle with the masks, but without receipts: they undo the original alone."""
        return {**vars(self), "receipts": [], _MASKS: masked_parameters(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        masks = state.pop(_MASKS)
        vars(self).update(state)
        set_masks(self.model, masks)

    def __getitem__(self, name: str) -> WidthGroup:
        """Return the width group that a module or parameter produces.

        Raises:
            EditError: its width cannot be resized; the message says why.
            UnknownNameError: nothing in the network with this name has a width.
        """
        if not isinstance(name, str):
            some = self.groups[0].name if self.groups else "layer1"
            raise EditError(f"a group is named by a string such as {some!r}, not by {name!r}")
        if name in self.index:
            return self.groups[self.index[name]]
        if name in self.fixed:
            raise EditError(f"{name!r} cannot be resized: {self.fixed[name]}")
        raise UnknownNameError("width group", name, (group.name for group in self.groups))

    def __iter__(self) -> Iterator[WidthGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def widths(self) -> dict[str, int]:
        """The width of every group, in forward order."""
        return {group.name: group.width for group in self.groups}

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers by name."""
        return named_tensors(self.model)

    def shapes_now(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of all parameters and of the buffers that units lie along.

        Other buffers are left out, because a forward pass may replace them. So may other dimensions
        of these buffers: a table may be as long as the longest input. They are None.
        """
        lie_along = {(s.parameter, s.dim) for group in self.groups for s in group.slices}
        lie_in = {name for name, _ in lie_along}
        return {
            name: tuple(
                size if isinstance(tensor, nn.Parameter) or (name, dim) in lie_along else None
                for dim, size in enumerate(tensor.shape)
            )
            for name, tensor in self.tensors().items()
            if isinstance(tensor, nn.Parameter) or name in lie_in
        }

    def check(self) -> None:
        """Refuse a network that no longer fits its description.

        Raises:
            EditError: a tensor has another shape, because `load`, another graph or a replaced
                layer resized the network.
        """
        shapes = self.shapes_now()
        for name in [*self.shapes, *shapes]:
            expected, found = self.shapes.get(name), shapes.get(name)
            if expected != found:
                raise EditError(
                    f"the network was changed behind this graph's back ({name!r} has the shape "
                    f"{found}, not {expected}); trace it again"
                )

    def cost(self, widths: Mapping[str, int] | None = None) -> Cost:
        """Return the cost of the network, or its cost at other widths, without running it.

        FLOPs are those of a pass on all example inputs of `trace`, as `measure` counts them. The
        results of pruning and growing, and absolute budgets, are for one sample; see
        `Cost.num_samples`.

        Args:
            widths: group name -> width; groups not named keep their width. None (the default)
                means the network as it is, and zero weights are counted to find `nonzero`. With
                given widths, every weight counts as non-zero.

        Raises:
            UnknownNameError: no group has this name.
            EditError: something other than this graph resized the network.
            ValueError: a width is not a whole number, or is below 0.
        """
        self.check()
        if widths is not None:
            return self.cost_at(widths)
        return read_costs(self.unread_cost())[0]

    def unread_cost(self) -> UnreadCost:
        """Return the cost of the network as it is, to be read with those of others."""
        counts = nonzero_counts(list(self.model.parameters()))
        return UnreadCost(self.cost_model, [g.width for g in self.groups], counts)

    def cost_at(self, widths: Mapping[str, int]) -> Cost:
        """Return `cost` without checking the network, for searches that call it very often."""
        return self.cost_model.cost(self._widths_with(widths))

    def traffic_bytes(self, widths: Mapping[str, int]) -> int:
        """Return the bytes that operations write in a pass on the inputs of `trace`.

        See `cost` for the arguments and errors.
        """
        return self.cost_model.traffic(self._widths_with(widths))

    def _widths_with(self, widths: Mapping[str, int]) -> list[int]:
        if not isinstance(widths, Mapping):
            raise EditError(f"cost: widths is {widths!r}; give a dict of names and widths")
        wanted = {self[name].name: width for name, width in widths.items()}
        for name, width in wanted.items():
            if isinstance(width, bool) or not isinstance(width, Integral) or width < 0:
                raise ValueError(
                    f"cost: {name!r} cannot have {width!r} units; give a whole number >= 0"
                )
        return [int(wanted.get(g.name, g.width)) for g in self.groups]
