"""Applying a plan: it is checked as a whole, then applied as a whole or not at all.

A plan is divided into stages. The edits of one stage concern distinct width groups or distinct
parameters, so their order does not matter and they are applied together. Each stage starts from the
network that the previous stage left. An `Insert` or `Remove` is a stage of its own: the network is
traced again after it, and only then is the rest of the plan checked.

A stage that resizes computes all new weights before it assigns the first one. It finds the new
layout of each dimension by index arithmetic, computes the new weights, proves exact growth by a
forward pass, and refits consumers if there are batches to compensate with. Then it assigns the new
values to the existing parameters, which keep their identity, together with gradients, masks,
optimizer state and integer attributes of modules.

Every assignment goes through a `Transaction`, which keeps the old objects. If a stage fails, they
are put back, and `Receipt.undo` does the same later. This is bit-exact, because the old tensors
themselves return. Training in between cannot have modified them, because it worked on new tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynopt_ray.errors import EditError
from dynopt_ray.structure.costs import Cost, read_costs
from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans.captured_graphs import check_not_captured
from dynopt_ray.structure.plans.depth import insert_block, remove_block
from dynopt_ray.structure.plans.edits import Edit, Grow, Insert, Mask, Remove, Shrink
from dynopt_ray.structure.plans.exactness import check_growth
from dynopt_ray.structure.plans.gains import rescale_gains
from dynopt_ray.structure.plans.history import HISTORIES, RESIZED, History, extended, history_of
from dynopt_ray.structure.plans.initialisation import Draw
from dynopt_ray.structure.plans.kept_tensors import drop_kept
from dynopt_ray.structure.plans.optimizer_state import Optimizers, OptimizerState, each_optimizer
from dynopt_ray.structure.plans.pruned import free_new_weights
from dynopt_ray.structure.plans.resizing import axes_of_tensors, resized, resized_weights
from dynopt_ray.structure.plans.stages import (
    Masking,
    PlanStage,
    as_edits,
    check_arguments,
    check_plan,
)
from dynopt_ray.structure.preserve import (
    Transaction,
    masked_parameters,
    recompute_weights,
    update_switches,
    within,
)
from dynopt_ray.structure.refit import (
    BeforeAndAfter,
    Refits,
    calibration_batches,
    compensated,
    reading_removed,
)
from dynopt_ray.structure.tracing import Inputs
from dynopt_ray.structure.units import Axis, Change, Key, moved_group, new_axes


@dataclass(eq=False)
class Receipt:
    """The record of an applied plan, which can undo it.

    Attributes:
        plan: the edits.
        widths: group name -> (width before, width after), for the groups that changed.
        before: the network's cost before the plan.
        after: the network's cost after the plan.
        refitted: names of the weights that compensation refitted, in forward order.
        not_refitted: names of the parameters that read removed units but that compensation cannot
            refit: weights that are computed from others (weight norm, masks of torch's own), and
            those of recurrent and bilinear layers.
    """

    plan: tuple[Edit, ...]
    widths: Mapping[str, tuple[int, int]]
    before: Cost
    after: Cost
    refitted: tuple[str, ...]
    not_refitted: tuple[str, ...]
    _network: Network = field(repr=False)
    _history: History = field(repr=False)
    _transaction: Transaction = field(repr=False)

    def undo(self) -> None:
        """Restore the network and the optimizers of the plan, bit for bit.

        These are widths, blocks, weights, buffers, masks, attributes and optimizer state, whether
        the plan touched them or not. So training since the plan is lost. The receipt holds copies
        of all of it until then; `Graph.commit` frees them. Learning rates and other options of
        optimizers stay, and so do the dtype and device of the network if they were changed.

        Raises:
            EditError: the plan was undone or committed already, or the network was changed later:
                by a later plan, which must be undone first, by another graph or by `load`.
        """
        if self not in self._network.receipts:
            raise EditError("this plan has been undone or committed already")
        check_not_captured(self._network.model)
        if self._network.receipts[-1] is not self:
            raise EditError(
                "a later plan changed the network; undo the later receipts first, newest first"
            )
        if history_of(self._network.model) is not self._history:
            raise EditError(
                "the network was changed behind this graph's back since (by another graph, prune, "
                "or load). Undo the other graph's plans first; after load, undo is impossible"
            )
        number = self._network.num_edits
        try:
            with torch.inference_mode(mode=False):
                self._transaction.roll_back()
        finally:
            with torch.inference_mode(mode=False):
                self._transaction.roll_back()  # finishes what Ctrl-C interrupted
            # An edit after an undo must not draw the same new weights.
            self._network.num_edits = number

    def forget(self) -> None:
        """Give up `undo` and free the tensors it would need; see `Graph.commit`."""
        self._transaction.forget()


def apply_plan(
    network: Network,
    plan: Edit | Iterable[Edit],
    *,
    optimizer: Optimizers | None = None,
    compensate: Iterable[Inputs] | Tensor | None = None,
    seed: int | None = None,
) -> Receipt:
    """Apply a plan to a network in place; its optimizer follows.

    Parameters keep their identity, so parameter groups, hooks and references stay valid. Edits
    take effect in the order of the plan: each sees the widths that the previous edits left.

    Args:
        network: the traced network.
        plan: the edits, at least one; a single edit may be passed without a list.
        optimizer: the network's optimizer, or a list of all of them if each trains some of the
            parameters; their state follows. Any optimizer that keeps state per parameter works.
        compensate: batches of network inputs (a tensor counts as one batch). If given, weights
            that read removed units or are masked are refitted to reproduce their previous outputs:
            linear layers, convolutions and other products with a parameter. `Receipt.refitted`
            lists them. Masked weights stay at zero.
        seed: seed of the weights of new units, so that a copy of the network gets the same ones.
            Default: torch's own seed and the number of the edit.

    Raises:
        EditError: the plan cannot be applied or would change nothing. The network, its optimizer
            and the graph are unchanged.
        UnknownNameError: an edit names nothing in the network.
    """
    plan = as_edits(plan)
    if not plan:
        raise EditError("the plan is empty: it would change nothing")
    network.check()
    check_not_captured(network.model)
    stages, rest = check_plan(network, plan)
    check_arguments(optimizer, seed)
    optimizers = each_optimizer(optimizer)
    states = [OptimizerState(one, network.model) for one in optimizers]
    batches = calibration_batches(compensate)
    unread, old_widths = network.unread_cost(), network.widths
    transaction = Transaction(network.model, optimizers)

    def applied() -> Receipt:
        refits = _apply_stages(network, stages, rest, states, batches, seed, transaction)
        widths = _changed(old_widths, network.widths)
        transaction.set_attribute(network, "shapes", network.shapes_now())
        history = extended(history_of(network.model), plan)
        network.check()
        before, after = read_costs(unread, network.unread_cost())
        receipt = Receipt(
            *(plan, widths, before, after, refits.done, refits.left),
            *(network, history, transaction),
        )
        transaction.set_item(HISTORIES, network.model, history)
        transaction.keep_values(_last_transaction(network))
        transaction.set_attribute(network, "receipts", [*network.receipts, receipt])
        refits.warn()
        return receipt

    return within(transaction, applied)


def _last_transaction(network: Network) -> Transaction | None:
    last = network.receipts[-1] if network.receipts else None
    return last._transaction if isinstance(last, Receipt) else None


def _changed(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return the widths that differ; the width of a group that does not exist is 0."""
    both = {name: (old.get(name, 0), new.get(name, 0)) for name in [*old, *new]}
    return {name: (before, after) for name, (before, after) in both.items() if before != after}


def _apply_stages(
    network: Network,
    stages: Sequence[PlanStage],
    rest: Sequence[Edit],
    states: Sequence[OptimizerState],
    batches: Sequence[Inputs] | None,
    seed: int | None,
    transaction: Transaction,
) -> Refits:
    """Apply the checked stages of a plan, then check and apply the rest.

    Returns:
        The weights that were refitted, and those that could not be.
    """
    refits = Refits()
    done = 0
    while stages:
        for stage in stages:
            if isinstance(stage, Remove):
                remove_block(network, stage, states, transaction)
            elif isinstance(stage, Insert):
                insert_block(network, stage, states, transaction)
            elif isinstance(stage, Masking):
                _apply_masks(network, stage, states, batches, refits, transaction)
            else:
                default = (torch.initial_seed(), network.num_edits)
                draw = default if seed is None else (seed, done)
                _apply_widths(network, stage, states, batches, draw, refits, transaction)
            done += 1
        stages, rest = check_plan(network, rest)
    return refits


def _apply_widths(
    network: Network,
    edits: Sequence[Grow | Shrink],
    states: Sequence[OptimizerState],
    batches: Sequence[Inputs] | None,
    draw: Draw,
    refits: Refits,
    transaction: Transaction,
) -> None:
    """Resize distinct groups; all new tensors are computed before the first one is assigned."""
    drop_kept(network, transaction)
    changes = [_change(network, edit) for edit in edits]
    tensors = network.tensors()
    sizes = {(n, d): size for n, t in tensors.items() for d, size in enumerate(t.shape)}
    axes = new_axes(changes, sizes)
    by_tensor = axes_of_tensors(axes)
    weights = _resized_weights(network, tensors, changes, axes, draw)
    _check_growth(network, edits, changes, weights, draw)
    masks = {
        name: resized(keep, by_tensor.get(name, {}), True)
        for name, keep in masked_parameters(network.model).items()
    }
    if batches is not None:
        new = {**tensors, **weights}
        cut = BeforeAndAfter(
            network.model, tensors, new, network.attributes, changes, by_tensor, masks
        )
        lossy = reading_removed(changes)
        refitted = compensated(cut, network.consumers, lossy, batches)
        refits.note(lossy, refitted, network.consumers, tensors)
        weights.update(refitted)
    by_group = {change.group.name: change for change in changes}
    groups = [moved_group(g, by_group.get(g.name), axes) for g in network.groups]

    for name, value in weights.items():
        tensor, along = tensors[name], by_tensor.get(name, {})
        grad = None if tensor.grad is None else resized(tensor.grad, along, 0.0)
        if name in masks:
            value = value.masked_fill(~masks[name], 0)
            transaction.set_mask(tensor, masks[name])
        for state in states:
            transaction.set_state(state.optimizer, tensor, state.resized(tensor, along, value))
        transaction.assign(tensor, value, grad)
    owners = {network.model.get_submodule(name.rpartition(".")[0]) for name in weights}
    recompute_weights(owners, transaction)
    added = {change.group.name: change.added for change in changes}
    for attribute in network.attributes:
        if attribute.change(added):
            value_now = attribute.read(network.model)
            module = network.model.get_submodule(attribute.module)
            transaction.set_attribute(module, attribute.name, getattr(module, attribute.name))
            attribute.write(network.model, value_now + attribute.change(added))
    update_switches(network.model.modules(), transaction)
    resized_here = {(s.parameter, s.dim) for change in changes for s in change.group.slices}
    before = RESIZED.get(network.model, frozenset())
    transaction.set_item(RESIZED, network.model, before | resized_here)
    transaction.set_attribute(network, "groups", tuple(groups))
    transaction.set_attribute(network, "num_edits", network.num_edits + 1)


def _resized_weights(
    network: Network,
    tensors: Mapping[str, Tensor],
    changes: Sequence[Change],
    axes: Mapping[Key, Axis],
    draw: Draw,
) -> dict[str, Tensor]:
    """Return the new values of every parameter and buffer that the changes touch."""
    weights = resized_weights(
        network.model, tensors, changes, axes, draw=draw, nonlinear=network.nonlinear
    )
    free_new_weights(tensors, weights, axes)
    rescale_gains(tensors, weights, network.weight_norms, axes)
    return weights


def _check_growth(
    network: Network,
    edits: Sequence[Grow | Shrink],
    changes: Sequence[Change],
    weights: dict[str, Tensor],
    draw: Draw,
) -> None:
    """Check that growth that has to be exact does not change the output when applied alone."""
    pairs = zip(edits, changes, strict=True)
    growing = [change for edit, change in pairs if isinstance(edit, Grow) and edit.exact]
    if not growing:
        return
    tensors = network.tensors()
    if len(growing) < len(changes):
        sizes = {(n, d): size for n, t in tensors.items() for d, size in enumerate(t.shape)}
        axes = new_axes(growing, sizes)
        weights = _resized_weights(network, tensors, growing, axes, draw)
    inputs = network.arguments.example_inputs
    check_growth(network.model, inputs, tensors, weights, network.attributes, growing)


def _apply_masks(
    network: Network,
    masks: Sequence[Mask],
    states: Sequence[OptimizerState],
    batches: Sequence[Inputs] | None,
    refits: Refits,
    transaction: Transaction,
) -> None:
    """Hold weights of distinct parameters at zero."""
    tensors = network.tensors()
    # Copy the masks: the caller may modify the originals.
    keeps = {m.parameter: m.keep.to(tensors[m.parameter].device, copy=True) for m in masks}
    weights = {name: tensors[name].detach().masked_fill(~keep, 0) for name, keep in keeps.items()}
    if batches is not None:
        held = masked_parameters(network.model)
        lossy = {n for n, keep in keeps.items() if n not in held or bool((held[n] & ~keep).any())}
        cut = BeforeAndAfter(
            network.model, tensors, {**tensors, **weights}, (), (), {}, {**held, **keeps}
        )
        refitted = compensated(cut, network.consumers, lossy, batches)
        refits.note((), refitted, network.consumers, tensors)
        weights.update(refitted)
    for name, value in weights.items():
        parameter, grad = tensors[name], tensors[name].grad
        # Parameters that are refitted but not masked keep their optimizer state. Copy it: training
        # will modify it in place.
        keep = keeps[name] if name in keeps else torch.ones_like(value, dtype=torch.bool)
        for state in states:
            transaction.set_state(state.optimizer, parameter, state.masked(parameter, keep))
        grad = None if grad is None else grad * keep
        if name in keeps:
            transaction.set_mask(parameter, None if bool(keep.all()) else keep)
        transaction.assign(parameter, value, grad)


def _change(network: Network, edit: Grow | Shrink) -> Change:
    group = network[edit.group]
    everything = torch.arange(group.width, device="cpu")
    if isinstance(edit, Grow):
        if edit.init == "fresh":
            return Change(group, everything, torch.full((edit.units,), -1, device="cpu"))
        # Copy the units in order from the first one, each as rarely as possible.
        return Change(group, everything, torch.arange(edit.units, device="cpu") % group.width)
    keep = torch.ones(group.width, dtype=torch.bool, device="cpu")
    if edit.remove is not None:
        keep[list(edit.remove)] = False
    else:
        keep[:] = False
        keep[list(edit.keep or ())] = True
    none = torch.zeros(0, dtype=torch.long, device="cpu")
    return Change(group, torch.nonzero(keep).flatten(), none)
