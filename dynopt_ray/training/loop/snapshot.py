"""Snapshots: an in-memory copy of everything that training and edits change."""

import copy
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, Receipt, extra_states, mask_of, set_mask


class Snapshot:
    """The present state of a network and its optimizer, which `restore` brings back bit for bit.

    A snapshot holds weights, buffers, gradients, masks, the train or eval mode and the extra state
    of each module, the optimizer's state and options (such as learning rates), and the random
    states of torch and of `generators`. A snapshot of a graph also restores widths and
    attributes. The position of a data loader is not part of it.

    Args:
        network: the graph of a traced network, or a module whose shapes do not change.
        optimizer: the optimizer over the network's parameters.
        generators: the caller's own random generators, which are restored too.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> snapshot = Snapshot(model)
        >>> before = model.weight.clone()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> snapshot.restore()
        >>> torch.equal(model.weight, before)
        True
    """

    def __init__(
        self,
        network: Graph | nn.Module,
        optimizer: Optimizer | None = None,
        *,
        generators: Iterable[torch.Generator] = (),
    ) -> None:
        self._graph = network if isinstance(network, Graph) else None
        model = network.model if isinstance(network, Graph) else network
        self._receipts: tuple[Receipt, ...] = tuple(self._graph.receipts if self._graph else ())
        self._widths = self._graph.widths if self._graph else {}
        self._masks = [(p, mask_of(p)) for p in model.parameters()]
        tensors = [*model.parameters(), *model.buffers()]
        self._tensors = [(t, t.detach().clone(), _cloned(t.grad)) for t in tensors]
        self._buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
        self._extra = extra_states(model)
        self._modes = [(module, module.training) for module in model.modules()]
        self._optimizer = optimizer
        self._state = {} if optimizer is None else _copied(dict(optimizer.state))
        groups = [] if optimizer is None else optimizer.param_groups
        self._options = [KeptOptions(group) for group in groups]
        self._generators = [(g, g.get_state()) for g in generators]
        self._cpu_random = torch.get_rng_state()
        on_cuda = any(t.is_cuda for t in tensors)
        self._cuda_random = torch.cuda.get_rng_state_all() if on_cuda else None

    def restore(self) -> None:
        """Restore the state; this may be repeated. Plans applied since are undone, newest first.

        Raises:
            EditError: a plan applied before the snapshot has since been undone or committed, a
                plan applied after it has been committed (`Graph.commit`) and changed widths, or
                the snapshot was taken of a module whose shapes have changed. Nothing is changed.
        """
        self._check()
        while self._graph is not None and len(self._graph.receipts) > len(self._receipts):
            self._graph.receipts[-1].undo()
        for live, kept in self._buffers:
            _put_back(live, kept)
        with torch.no_grad():
            for tensor, value, grad in self._tensors:
                tensor.copy_(value)
                tensor.grad = _cloned(grad)
        for parameter, keep in self._masks:
            if mask_of(parameter) is not keep:  # set by a committed plan, which cannot be undone
                set_mask(parameter, keep)
        for module, extra in self._extra:
            module.set_extra_state(copy.deepcopy(extra))
        for module, training in self._modes:
            module.training = training
        if self._optimizer is not None:
            self._optimizer.state.clear()
            self._optimizer.state.update(_copied(self._state))
            for group, options in zip(self._optimizer.param_groups, self._options, strict=True):
                options.put_back(group)
        for generator, state in self._generators:
            generator.set_state(state)
        torch.set_rng_state(self._cpu_random)
        if self._cuda_random is not None:
            torch.cuda.set_rng_state_all(self._cuda_random)

    def _check(self) -> None:
        if self._graph is not None:
            if tuple(self._graph.receipts[: len(self._receipts)]) != self._receipts:
                raise EditError(
                    "a plan applied before this snapshot has been undone or committed since, so "
                    "its widths cannot be restored. Restore an older snapshot if it was undone, "
                    "and after a commit take a new one"
                )
            if _widths_undone(self._graph, len(self._receipts)) != self._widths:
                raise EditError(
                    "a plan applied after this snapshot has been committed since, so its widths "
                    "are final and cannot be restored. Take a new snapshot after each commit"
                )
        elif any(tensor.shape != value.shape for tensor, value, _ in self._tensors):
            raise EditError(
                "the network has been resized since this snapshot. Take snapshots of the graph, "
                "Snapshot(graph, …), so that widths can be restored"
            )


def _put_back(live: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Register buffers again in whose place a pass has put others of the same shape.

    A table that has grown with the inputs stays: attributes that are no tensors describe it.
    """
    for name, buffer in kept.items():
        present = live.get(name)
        if buffer is not None and present is not None and present.shape == buffer.shape:
            live[name] = buffer


class KeptOptions:
    """A copy of the options of an optimizer's parameter group, which can be put back.

    Options that are tensors (such as a learning rate on the device) are restored in place, because
    compiled steps and captured CUDA graphs hold the tensor itself.

    Args:
        group: the parameter group.
        only: names of the options to keep. Default: all except the parameters.
    """

    def __init__(self, group: Mapping[str, Any], only: Set[str] | None = None) -> None:
        self._only = only
        self._options = {
            key: (group[key], copy.deepcopy(group[key])) for key in self._names_in(group)
        }

    def put_back(self, group: dict[str, Any]) -> None:
        """Restore the options; this may be repeated. Options added since are deleted."""
        for added in self._names_in(group) - self._options.keys():
            del group[added]
        for key, (original, value) in self._options.items():
            if isinstance(original, Tensor):
                with torch.no_grad():
                    original.copy_(value)
                group[key] = original
            else:
                group[key] = copy.deepcopy(value)

    def _names_in(self, group: Mapping[str, Any]) -> set[str]:
        return group.keys() - {"params"} if self._only is None else group.keys() & self._only


def _widths_undone(graph: Graph, num_receipts: int) -> dict[str, int]:
    """Return the widths that would remain if all plans but the first `num_receipts` were undone."""
    widths = graph.widths
    for receipt in reversed(graph.receipts[num_receipts:]):
        widths.update({name: before for name, (before, _) in receipt.widths.items()})
    return widths


def _copied(state: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {
        parameter: {
            key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for key, value in entries.items()
        }
        for parameter, entries in state.items()
    }


def _cloned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
