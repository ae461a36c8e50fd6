"""Carrying out a plan: checked whole, then applied whole or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure.compensate import Cut, compensated
from dynopt_ray.structure.cost import Cost
from dynopt_ray.structure.edits import Edit, Grow, Mask, Shrink
from dynopt_ray.structure.forward import Inputs
from dynopt_ray.structure.layout import Change, moved_group, new_axes
from dynopt_ray.structure.masks import mask_of, watch
from dynopt_ray.structure.optimizer_state import OptimizerState
from dynopt_ray.structure.resize import axes_of_tensors, resized, resized_weights
from dynopt_ray.structure.transaction import Transaction

if TYPE_CHECKING:
    from dynopt_ray.structure.graph import Graph


@dataclass(eq=False)
class Receipt:
    """What applying a plan did.

    Attributes:
        plan: the edits.
        widths: group name -> (width before, width after), for the groups that changed.
        before: the network's cost before.
        after: its cost after.
        refitted: the weights that were compensated, in forward order.
    """

    plan: tuple[Edit, ...]
    widths: Mapping[str, tuple[int, int]]
    before: Cost
    after: Cost
    refitted: tuple[str, ...]
    _graph: "Graph" = field(repr=False)
    _transaction: Transaction | None = field(repr=False)

    def undo(self) -> None:
        """Put back, bit for bit, all that the plan touched: weights, buffers, state, attributes.

        What was learned since then in the tensors that the plan touched is lost; tensors it did
        not touch stay as they are now.

        Raises:
            EditError: it was undone already, it was committed, or a later plan must be undone
                first.
        """
        if self._transaction is None:
            raise EditError("this plan has been undone or committed already")
        if self._graph.receipts[-1:] != [self]:
            raise EditError(
                "a later plan changed the network; undo the later receipts first, newest first"
            )
        self._transaction.roll_back()
        self._transaction = None

    def forget(self) -> None:
        """Give up `undo` and free the tensors it would need; see `Graph.commit`."""
        self._transaction = None


def apply_plan(
    graph: "Graph",
    plan: Sequence[Edit],
    *,
    optimizer: Optimizer | None = None,
    compensate: Iterable[Inputs] | Tensor | None = None,
) -> Receipt:
    """Change a network in place, with its optimizer.

    Parameters keep their identity, so parameter groups, hooks and references stay valid. Edits
    take effect in the order of the plan: each sees the widths that the ones before it left.

    Args:
        graph: the traced network.
        plan: the edits, at least one.
        optimizer: its optimizer; its state follows. Any optimizer with state per parameter.
        compensate: batches of what the network is called with (a tensor counts as one batch). If
            given, what reads removed units is refitted to give what it gave before: linear
            layers, convolutions and other products with a parameter, as `Receipt.refitted`
            lists them.

    Raises:
        EditError: the plan cannot be carried out or would change nothing. The network, its
            optimizer and the graph are as they were.
        UnknownNameError: an edit names nothing of the network.
    """
    if not plan:
        raise EditError("the plan is empty: it would change nothing")
    graph.check()
    stages = check_plan(graph, plan)
    state = None if optimizer is None else OptimizerState(optimizer, graph.model)
    before, old_widths = graph.cost(), graph.widths
    refitted: dict[str, None] = {}
    with Transaction() as transaction:
        for stage in stages:
            if isinstance(stage, Mask):
                _apply_mask(graph, stage, optimizer, state, transaction)
            else:
                names = _apply_widths(graph, stage, optimizer, state, compensate, transaction)
                refitted.update(dict.fromkeys(names))
        widths = {
            name: (old, new)
            for name, old in old_widths.items()
            if (new := graph.widths[name]) != old
        }
        transaction.set_attribute(graph, "shapes", graph.shapes_now())
        receipt = Receipt(
            tuple(plan), widths, before, graph.cost(), tuple(refitted), graph, transaction
        )
        transaction.set_attribute(graph, "receipts", [*graph.receipts, receipt])
    return receipt


def _apply_widths(
    graph: "Graph",
    edits: Sequence[Grow | Shrink],
    optimizer: Optimizer | None,
    state: OptimizerState | None,
    compensate: Iterable[Inputs] | Tensor | None,
    transaction: Transaction,
) -> list[str]:
    """Resize distinct groups at once: all new tensors are computed before the first is assigned.

    Returns:
        The weights that were refitted.
    """
    _drop_kept(graph, transaction)
    changes = [_change(graph, edit) for edit in edits]
    tensors = graph.tensors()
    sizes = {(n, d): size for n, t in tensors.items() for d, size in enumerate(t.shape)}
    axes = new_axes(changes, sizes)
    by_tensor = axes_of_tensors(axes)
    weights = resized_weights(graph.model, tensors, changes, axes, edit_number=graph.num_edits)
    refitted: dict[str, Tensor] = {}
    if compensate is not None:
        new = {**tensors, **weights}
        cut = Cut(graph.model, tensors, new, graph.attributes, changes, by_tensor)
        batches = [compensate] if isinstance(compensate, Tensor) else list(compensate)
        refitted = compensated(cut, graph.consumers, batches)
        weights.update(refitted)
    by_group = {change.group.name: change for change in changes}
    groups = [moved_group(g, by_group.get(g.name), axes) for g in graph.groups]

    for name, value in weights.items():
        tensor, along = tensors[name], by_tensor.get(name, {})
        grad = None if tensor.grad is None else resized(tensor.grad, along, 0.0)
        keep = mask_of(tensor)
        if keep is not None:
            keep = resized(keep, along, True)
            value = value.masked_fill(~keep, 0)
            transaction.set_mask(tensor, keep)
        if isinstance(tensor, nn.Parameter) and optimizer is not None and state is not None:
            transaction.set_state(optimizer, tensor, state.resized(tensor, along))
        transaction.assign(tensor, value, grad)
    added = {change.group.name: change.added for change in changes}
    for attribute in graph.attributes:
        if attribute.change(added):
            value_now = attribute.read(graph.model)
            module = graph.model.get_submodule(attribute.module)
            transaction.set_attribute(module, attribute.name, getattr(module, attribute.name))
            attribute.write(graph.model, value_now + attribute.change(added))
    transaction.set_attribute(graph, "groups", tuple(groups))
    # Never taken back: an edit after an undo must not draw the same new weights.
    graph.num_edits += 1
    return [name for name in refitted if name in graph.consumers]


def _drop_kept(graph: "Graph", transaction: Transaction) -> None:
    """Empty what modules keep of an earlier pass: it has the old sizes."""
    for module, name in graph.caches:
        kept = getattr(module, name)
        left = {k: v for k, v in kept.items() if not isinstance(v, Tensor)}
        transaction.set_attribute(module, name, type(kept)(left))


def _apply_mask(
    graph: "Graph",
    mask: Mask,
    optimizer: Optimizer | None,
    state: OptimizerState | None,
    transaction: Transaction,
) -> None:
    parameter = graph.model.get_parameter(mask.parameter)
    # A copy: the caller may go on to change theirs.
    keep = mask.keep.to(parameter.device, copy=True)
    if optimizer is not None and state is not None:
        watch(optimizer)
        transaction.set_state(optimizer, parameter, state.masked(parameter, keep))
    grad = None if parameter.grad is None else parameter.grad * keep
    transaction.set_mask(parameter, None if bool(keep.all()) else keep)
    transaction.assign(parameter, parameter.detach().masked_fill(~keep, 0), grad)


def _change(graph: "Graph", edit: Grow | Shrink) -> Change:
    group = graph[edit.group]
    everything = torch.arange(group.width)
    if isinstance(edit, Grow):
        if edit.init == "fresh":
            return Change(group, everything, torch.full((edit.units,), -1))
        # The newest units are copied first and each as rarely as possible.
        return Change(group, everything, torch.arange(edit.units) % group.width)
    keep = torch.ones(group.width, dtype=torch.bool)
    if edit.remove is not None:
        keep[list(edit.remove)] = False
    else:
        keep[:] = False
        keep[list(edit.keep or ())] = True
    return Change(group, torch.nonzero(keep).flatten(), torch.zeros(0, dtype=torch.long))


Stage = Mask | list[Grow | Shrink]


def check_plan(graph: "Graph", plan: Sequence[Edit]) -> list[Stage]:
    """The plan cut into stages that can be done at once, after checking every edit of it.

    Raises:
        EditError: an edit cannot be carried out or would change nothing.
        UnknownNameError: an edit names nothing of the network.
    """
    stages: list[Stage] = []
    widths = graph.widths
    for edit in plan:
        if isinstance(edit, Mask):
            _check_mask(graph, edit, widths)
            stages.append(edit)
            continue
        name = graph[edit.group].name
        if isinstance(edit, Grow):
            _check_grow(graph, edit)
            widths[name] += edit.units
        elif isinstance(edit, Shrink):
            widths[name] = _check_shrink(graph, edit, widths[name])
        else:
            raise EditError(f"{edit!r} is not an edit. Known: Grow, Shrink, Mask.")
        last = stages[-1] if stages else None
        if isinstance(last, list) and all(graph[e.group].name != name for e in last):
            last.append(edit)
        else:
            stages.append([edit])
    return stages


def _check_grow(graph: "Graph", edit: Grow) -> None:
    group = graph[edit.group]
    if edit.units % group.step:
        raise EditError(
            f"Grow({edit.group!r}, units={edit.units}): this group grows in steps of {group.step}"
        )
    if edit.exact and not group.exact_growth:
        raise EditError(
            f"Grow({edit.group!r}): more units change the output, because an operation depends on "
            "their number (a normalisation or a mean over them). Pass exact=False to accept that."
        )


def _check_shrink(graph: "Graph", edit: Shrink, width: int) -> int:
    """The width that is left."""
    group = graph[edit.group]
    side, units = ("remove", edit.remove) if edit.keep is None else ("keep", edit.keep)
    units = units or ()
    wrong = [u for u in units if not 0 <= u < width]
    if wrong:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…): no unit {wrong[0]}; they are numbered 0 to "
            f"{width - 1}"
        )
    if len(set(units)) != len(units):
        raise EditError(f"Shrink({edit.group!r}, {side}=…) names a unit twice")
    left = len(units) if side == "keep" else width - len(units)
    if left == width:
        raise EditError(f"Shrink({edit.group!r}, {side}=…) removes nothing")
    if left < group.min_width:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…) would leave {left} of {width} units; at least "
            f"{group.min_width} must stay"
        )
    if (width - left) % group.step:
        raise EditError(
            f"Shrink({edit.group!r}, {side}=…): this group shrinks in steps of {group.step}"
        )
    return left


def _check_mask(graph: "Graph", edit: Mask, widths: Mapping[str, int]) -> None:
    parameters = dict(graph.model.named_parameters())
    if edit.parameter not in parameters:
        raise UnknownNameError("parameter", edit.parameter, parameters)
    parameter = parameters[edit.parameter]
    shape = list(parameter.shape)
    for group in graph.groups:
        for s in group.slices:
            if s.parameter == edit.parameter:
                shape[s.dim] += (widths[group.name] - group.width) * s.positions.shape[1]
    if list(edit.keep.shape) != shape:
        raise EditError(
            f"Mask({edit.parameter!r}): keep has shape {tuple(edit.keep.shape)}, the parameter "
            f"{tuple(shape)}"
        )
    old = mask_of(parameter)
    if bool(edit.keep.all()) and old is None:
        raise EditError(f"Mask({edit.parameter!r}) keeps every weight: it would change nothing")
    if old is not None and old.shape == edit.keep.shape and torch.equal(old.cpu(), edit.keep.cpu()):
        raise EditError(f"Mask({edit.parameter!r}) is the mask that the parameter already has")
