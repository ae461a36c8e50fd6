"""Follow unit ids through one forward pass.

`Trace` is a mode that sees every torch operation of the pass. Each coordinate of each parameter
dimension starts with an id of its own. The rule of an operation reads the ids along the dimensions
of its inputs (their labels), ties ids that the operation combines, and labels its output. So ids
move as the data does, and wherever two sizes must agree, the ids on both sides are tied. Ties are
only collected, in a `Record`; `grouping` merges tied ids into units after the pass.

Ids that reach an operation without a rule, or meet data without units, are pinned, which fixes
their units. Rules need shapes but no values, so the pass can run on the meta device.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from dynopt_ray.structure.tracing.consumers import Consumers
from dynopt_ray.structure.tracing.counts import NUMBERS, SIZES, Kept, counted_entries, counted_sizes
from dynopt_ray.structure.tracing.inexactness import Inexactness
from dynopt_ray.structure.tracing.nested_tensors import operands, storage_of, tensors_in
from dynopt_ray.structure.tracing.quantisers import watches_only
from dynopt_ray.structure.tracing.registry import RULES, SELECTS, OperationRule
from dynopt_ray.structure.tracing.torch_functions import TRANSPARENT, shape_only
from dynopt_ray.structure.tracing.values import LEAVES, READS, DataFlow, ValueReads
from dynopt_ray.structure.tracing.weights import Weights
from dynopt_ray.structure.units import (
    Consumer,
    IdArray,
    Label,
    Labels,
    Link,
    Record,
    Role,
    Work,
    covering,
)

Heads = Literal["heads", "dims"]


class Trace(TorchFunctionMode):
    """A mode that follows unit ids through a network and fills in a `Record`.

    Args:
        tensors: name -> tensor for every parameter and buffer with which the network will run.
        record: the record to fill in.
        heads: what a unit of attention is: a whole head, or one coordinate of all heads.
        buffers: names of the tensors that training does not change.
        frozen: names of the parameters that do not require a gradient.
        reads: the values that the pass reads; repeats those of an earlier pass, if it has them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        record: Record,
        heads: Heads,
        buffers: Iterable[str] = (),
        frozen: Collection[str] = (),
        reads: ValueReads | None = None,
    ) -> None:
        super().__init__()
        self.record = record
        self.heads: Heads = heads
        self.buffers = frozenset(buffers)
        self.values = reads or ValueReads()
        self.flow = DataFlow()
        self.running: list[tuple[str, nn.Module]] = []
        self.calls: dict[str, list[tuple[bool, int | None]]] = {}
        self.modules: dict[str, nn.Module] = {}
        self._labels: dict[int, tuple[Tensor, Labels]] = {}
        self.quantisers: frozenset[nn.Module] = frozenset()
        self.weights = Weights(tensors, self.buffers, frozen)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._consumers = Consumers(record)
        self._pinned_if_read: dict[int, tuple[Tensor, list[tuple[IdArray, str]]]] = {}
        self.inexact = Inexactness(record, self.running)
        for name, tensor in tensors.items():
            labels = []
            # Integer tensors (indices, masks) are data, so no units lie along them.
            sizes = tensor.shape if tensor.is_floating_point() or tensor.is_complex() else ()
            for dim, size in enumerate(sizes):
                ids = record.own((name, dim), size)
                if ids.size == size:  # an earlier pass may have resized a buffer in place
                    labels.append(Label((dim,), ids))
            self._labels[id(tensor)] = (tensor, tuple(labels))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then apply its rule."""
        kwargs = kwargs or {}
        if self.quantisers and watches_only(self.within_quantiser):
            return func(*args, **kwargs)
        opened = TRANSPARENT.get(func)
        if opened is not None:
            with self:
                out = opened(*args, **kwargs)
        elif (out := shape_only(func, args, kwargs)) is None:
            decides = not self.quantisers or self.within_quantiser is None
            out = self.values.run(func, args, kwargs, decides=decides)
        if func in SIZES or func in NUMBERS:
            self.values.note_size(args[0])
        if func in SIZES:
            return counted_sizes(out, self.labels(args[0]), self.record, *args, **kwargs)
        if func in NUMBERS:
            return counted_entries(func, out, self.labels(args[0]), self.record)
        if func in LEAVES:
            self.pin(self.labels(args[0]), "its values are read outside torch")
        given, results = operands(args, kwargs), operands((out,), {})
        taken = [label.ids for tensor in given for label in self.labels(tensor)]
        noted, num_ties = len(self.record.mixed), len(self.record.ties)
        if self._pinned_if_read and (func in READS or results):
            self.pin_what_is_read(given)
        handler = RULES.get(func)
        self.inexact.operation = func
        if kwargs.get("out") is not None:
            unknown_operation(self, (), func, args, kwargs, "no rule with `out=`")
        elif handler is not None:
            self._follow(handler, out, func, args, kwargs)
        elif opened is None and results:
            unknown_operation(self, out, func, args, kwargs)
        if taken and results and func not in SELECTS:
            carried = [label.ids for tensor in results for label in self.labels(tensor)]
            self.record.pass_through(taken, carried)
        if self.record.with_costs:
            self._note_made(results, given)
            use = self.values.seen[-1].use if func in READS else None
            self.flow.add(given, results, range(noted, len(self.record.mixed)), use)
        ties = self.record.ties[num_ties:]
        self.weights.follow(func, given, out, ties=ties, labels=self.labels)
        return out

    def _follow(
        self,
        handler: OperationRule,
        out: Any,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Apply a rule; if it fails, pin everything that the operation read."""
        try:
            handler(self, out, *args, **{k: v for k, v in kwargs.items() if k != "out"})
        except Exception as error:  # a rule may be the user's own
            failed = f"rule {handler.__name__!r} failed ({type(error).__name__}: {error})"
            unknown_operation(self, out, func, args, kwargs, failed)

    @property
    def blocks(self) -> dict[str, int | None]:
        """Modules that are called once and return a tensor like the one they take; see `Record`."""
        once = {name: calls[0] for name, calls in self.calls.items() if name and len(calls) == 1}
        return {name: num_others for name, (passes_on, num_others) in once.items() if passes_on}

    # The methods below are for rules.

    def labels(self, tensor: Tensor) -> Labels:
        """Return the labels of a tensor; empty for data."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry else ()

    def set(self, tensor: Tensor, labels: Labels) -> None:
        """Set the labels of a tensor, and keep the tensor alive so that its `id` stays unique."""
        claimed: set[int] = set()
        clean: list[Label] = []
        # A batch of size 1 looks like the single unit of a class token. It must not pin real units.
        for label in sorted(labels, key=lambda label: label.ids.size == 1):
            if claimed.intersection(label.dims):
                self.pin(label.ids, "units of two kinds were merged into one dimension")
                continue
            if label.ids.shape != tuple(tensor.shape[d] for d in label.dims):
                self.pin(label.ids, "its size changes in a way that no rule follows")
                continue
            claimed.update(label.dims)
            clean.append(label)
        self._labels[id(tensor)] = (tensor, tuple(clean))

    def name(self, tensor: Tensor | None) -> str | None:
        """Return the name of a parameter or buffer; None for any other tensor."""
        return None if tensor is None else self.record.names.get(id(tensor))

    def tie(self, one: IdArray, other: IdArray) -> None:
        """Note that these ids belong to the same units, elementwise after broadcasting."""
        if one is not other:
            self.record.ties.append((one, other))

    def pin(self, ids: IdArray | Labels, reason: str) -> None:
        """Note that these units cannot be resized."""
        for array in [ids] if isinstance(ids, np.ndarray) else [label.ids for label in ids]:
            self.record.pinned.append((array.ravel(), reason))

    def mix(
        self, ids: IdArray, axis: int | None = None, why: str = "depends on their number"
    ) -> None:
        """Note that the result depends on the number of these units.

        With an axis, ids that are equal along it do not count (a norm over each head).
        """
        if self.within_quantiser is not None:
            return  # its statistics are not part of the result; see the rules for quantisation
        self.inexact.mixes(ids, axis, why=why)

    def units(self, tensor: Tensor, dim: int) -> IdArray | None:
        """Return the ids along a dimension, or None if no one-dimensional label covers it."""
        label = covering(self.labels(tensor), dim % tensor.ndim)
        if label is not None and len(label.dims) > 1:
            self.pin(label.ids, "its units lie along several dimensions where they meet a weight")
            return None
        return None if label is None else label.ids

    def match(self, tensor: Tensor, dim: int, ids: IdArray | None) -> None:
        """Tie the units along `dim` of a tensor to `ids`; if only one side has units, pin them."""
        label = covering(self.labels(tensor), dim % tensor.ndim)
        if label is None and ids is not None:
            self.pin(ids, f"its size must match the data ({tensor.shape[dim]})")
        elif label is not None and ids is None:
            self.pin(label.ids, "it is combined with data that has no units")
        elif label is not None and ids is not None:
            axis = label.dims.index(dim % tensor.ndim)
            self.tie(
                label.ids, ids.reshape([-1 if a == axis else 1 for a in range(len(label.dims))])
            )

    def picked(self, out: Tensor, ids: IdArray) -> None:
        """Note that a constant index picked these units; they are pinned once `out` is read."""
        self.pin_if_read(out, ids, "one of its units is picked by a constant index")

    def pin_if_read(self, out: Tensor, ids: IdArray, reason: str) -> None:
        """Pin units once `out` is read."""
        _, before = self._pinned_if_read.setdefault(id(out), (out, []))
        before.append((ids.ravel(), reason))

    def pin_what_is_read(self, read: Any) -> None:
        """Pin the units that were to be pinned once these tensors are read."""
        for tensor in tensors_in(read):
            _, pins = self._pinned_if_read.pop(id(tensor), (tensor, []))
            self.record.pinned += pins

    def use(self, tensor: Tensor | None, *roles: Role | None) -> None:
        """Note the roles of a parameter's dimensions, in order: `use(weight, "out", "in")`."""
        name = self.name(tensor)
        if name is None:
            return
        self.record.first_use.setdefault(name, len(self.record.first_use))
        if name in self.buffers:  # training does not change it, so it does not make units
            for dim in range(tensor.ndim if tensor is not None else 0):
                self.record.roles.setdefault((name, dim), "scale")
        for dim, role in enumerate(roles):
            if role is not None and (name, dim) in self.record.parameter_ids:
                self._set_role((name, dim), role)

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter, or made of parameters and zero where they are."""
        return self.weights.is_pure(tensor)

    def reads(self, tensor: Tensor, dim: int) -> None:
        """Note that units along `dim` of `tensor` are summed over, weighted by its entries.

        Zeros in a weight hide new units from the result. If no parameter weights the units
        (queries times keys), the result depends on their number.
        """
        for label in self.labels(tensor):
            if dim % tensor.ndim not in label.dims:
                continue
            if tensor not in self.weights:
                if self.weights.vanishes(tensor):
                    self.inexact.norms(label.ids)
                else:
                    self.mix(label.ids, why="sums over them, and no parameter weights them")
                continue
            for key in self.record.owners(self.weights.alike(label.ids)):
                self._set_role(key, "in")
                if key[0] in self.buffers:
                    why = f"weights them by the buffer {key[0]!r}, which cannot learn"
                    self.mix(label.ids, why=why)

    def makes(self, weight: Tensor, dim: int) -> None:
        """Note that a weight makes the units along its dimension `dim`."""
        for label in self.labels(weight):
            if dim in label.dims:
                for key in self.record.owners(label.ids):
                    self._set_role(key, "out")

    def _set_role(self, key: tuple[str, int], role: Role) -> None:
        """Set a role. A dimension that both makes and reads units cannot grow exactly."""
        roles = self.record.roles
        if {role, roles.get(key, role)} == {"in", "out"}:
            why = f"uses {key[0]!r}, which both makes and reads them"
            self.mix(self.record.parameter_ids[key], why=why)
            role = "out"  # as a producer, it can name the group (tied embeddings)
        roles[key] = role

    @property
    def within_quantiser(self) -> nn.Module | None:
        """The observer or fake quantiser whose `forward` is running, if any."""
        module = self.running[-1][1] if self.running else None
        return module if module in self.quantisers else None

    def own(self, tensor: Tensor) -> None:
        """Give ids to an integer buffer. It is data unless a rule shows that units lie along it."""
        name = self.name(tensor)
        known = tensor.shape == self._shapes.get(name or "")  # not resized in this pass
        if name is not None and known and not self.labels(tensor):
            sizes = enumerate(tensor.shape)
            labels = [Label((dim,), self.record.own((name, dim), size)) for dim, size in sizes]
            self._labels[id(tensor)] = (tensor, tuple(labels))

    def hide(self, tensor: Tensor, dims: Iterable[int]) -> None:
        """Note that these dimensions of a parameter are no widths (kernel sizes)."""
        name = self.name(tensor)
        if name is not None:
            self.record.hidden.update((name, dim) for dim in dims)
            return
        # A weight computed from parameters: hide the dimensions of the parameters.
        for label in self.labels(tensor):
            if set(label.dims) <= set(dims):
                self.pin(label.ids, "it is a kernel size")
                self.record.hidden.update(self.record.owners(label.ids))

    def consume(self, weight: Tensor, out: Tensor, **how: Any) -> None:
        """Note that `out` is linear in the units that `weight` reads; see `Consumer`."""
        name = self.name(weight)
        if name is not None and not weight.is_complex():
            self._consumers.add(Consumer(name, **how), out)

    def forget_consumer(self, out: Tensor) -> None:
        """Take back `consume`: `out` is not the plain result of a product."""
        self._consumers.forget(out)

    def normalised(self, source: Tensor, running_mean: Tensor | None) -> None:
        """Note that a BatchNorm reads `source`; its running mean can take the place of a bias."""
        self._consumers.absorb(source, source, 1, mean=self.name(running_mean))

    def shifted(self, out: Tensor, source: Tensor, bias: Tensor) -> None:
        """Note that a parameter is added to `source`; it counts as a bias if there is none yet."""
        self._consumers.absorb(source, out, source.ndim - 1, bias=self.name(bias))

    def count(self, labels: Labels, sizes: Sequence[int]) -> None:
        """Note the multiply-adds of a product over a joint space of these sizes."""
        if self.record.with_costs:
            self.record.work.append(Work.over(labels, sizes))

    def _note_made(self, results: Iterable[Tensor], given: Iterable[Tensor]) -> None:
        """Note the bytes that an operation writes; views write none."""
        storages = {storage_of(tensor) for tensor in given}
        for tensor in results:
            if storage_of(tensor) not in storages:
                work = Work.over(self.labels(tensor), tensor.shape)
                size = tensor.element_size() * work.coefficient
                self.record.made.append(replace(work, coefficient=size))

    def link(
        self,
        attribute: str,
        ids: IdArray,
        index: int | None = None,
        owner: Tensor | None = None,
    ) -> None:
        """Note that an attribute of `owner`'s modules, or of the running module, follows a size."""
        name = self.name(owner)
        modules = {} if name is None else {name.rpartition(".")[0]: None}
        for running, module in self.running[-1:]:
            if name is None or any(p is owner for p in module._parameters.values()):
                modules[running] = None  # a weight may be tied to that of another module
        for each in modules:
            value: Any = getattr(self.modules.get(each), attribute, None)
            if index is not None:
                value = value[index] if isinstance(value, tuple | list) else None
            self.counts(value, ids, of_layer=True)

    def counts(self, size: Any, ids: IdArray, *, of_layer: bool = False) -> None:
        """Note that `size`, if a module keeps it, follows the number of these ids."""
        if isinstance(size, Kept) and not size.less and size.value * size.times == ids.size:
            rows = ids.reshape(size.times, -1)
            if bool((rows == rows[0]).all()):
                self.record.links.append(Link(size.place, rows[0], of_layer))


def unknown_operation(
    trace: Trace,
    out: Any,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    why: str = "no rule",
) -> None:
    """Pin everything that an operation without a usable rule read; its result has no units."""
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    for tensor in tensors_in((args, kwargs)):
        trace.pin(trace.labels(tensor), f"{why} for the operation {name}")
    for tensor in tensors_in(out):
        trace.set(tensor, ())
