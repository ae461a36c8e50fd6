"""`trace` a network, then change its widths, masks and costs through the graph it returns."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynopt_ray.errors import EditError, TraceError, UnknownNameError
from dynopt_ray.structure.apply import Receipt, apply_plan
from dynopt_ray.structure.attributes import Attribute
from dynopt_ray.structure.collector import CollectorPaused
from dynopt_ray.structure.cost import Cost, count_nonzero
from dynopt_ray.structure.cost_model import CostModel
from dynopt_ray.structure.edits import Edit
from dynopt_ray.structure.forward import Inputs, named_tensors
from dynopt_ray.structure.groups import WidthGroup, producer_name
from dynopt_ray.structure.optimizer_state import Optimizers
from dynopt_ray.structure.passes import Passes, trace_at_own_sizes, unused
from dynopt_ray.structure.record import Consumer, Record
from dynopt_ray.structure.surroundings import Surroundings
from dynopt_ray.structure.tracing import Heads
from dynopt_ray.structure.transaction import Transaction
from dynopt_ray.structure.verify import Verifier

_DESCRIPTION = (
    *("groups", "fixed", "attributes", "caches", "consumers", "blocks", "_index", "_cost_model"),
)
_BY_CALLER = "the caller fixed it"
# By name: importing what is not used takes long. Behind each: where its inner module is.
_WRAPPERS = {
    "DistributedDataParallel": " (.module)",
    "FullyShardedDataParallel": " before it is sharded",
    "FSDPModule": " before it is sharded",
    "DataParallel": " (.module)",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """What `trace` was asked; see there."""

    example_inputs: Inputs
    fixed: tuple[str, ...]
    heads: Heads


class Graph:
    """A live network and the groups in which its widths can change. Made by `trace`.

    Attributes:
        model: the network itself; edits change it in place.
        groups: what can be resized, in forward order.
        fixed: what cannot be resized: name -> reason.
        blocks: the modules that `Remove` can take out: they take a tensor, as their first argument,
            and give one of the same shape, once per forward pass. Name -> number of outputs
            beside it, or None.
        asked: what the network was traced with.

    What else is public is for the parts of this package that carry out edits.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[WidthGroup],
        fixed: Mapping[str, str],
        *,
        attributes: Sequence[Attribute],
        cost_model: CostModel,
        passes: Passes,
        asked: "Asked",
    ) -> None:
        self.model = model
        self.fixed = dict(fixed)
        self.groups = tuple(groups)
        # Edits change what a group holds, never its name and place.
        self._index = {n: i for i, g in reversed([*enumerate(groups)]) for n in g.producers}
        self._index.update((group.name, i) for i, group in enumerate(groups))
        self.attributes = tuple(attributes)
        self.caches = dict.fromkeys(passes.record.caches)
        self.consumers: Mapping[str, Sequence[Consumer]] = passes.record.consumers
        self.num_edits = 0
        self.receipts: list[Receipt] = []
        self.shapes = self.shapes_now()
        owners = {name for name, module in model.named_modules() if [*module.parameters()]}
        self.blocks = {n: more for n, more in passes.record.blocks.items() if n in owners}
        self.asked = asked
        self._output_sizes = passes.output_sizes
        self._cost_model = cost_model

    def __getitem__(self, name: str) -> WidthGroup:
        """The group that a module or parameter produces.

        Raises:
            EditError: it cannot be resized; says why.
            UnknownNameError: the network has nothing of this name.
        """
        if name in self._index:
            return self.groups[self._index[name]]
        if name in self.fixed:
            raise EditError(f"{name!r} cannot be resized: {self.fixed[name]}")
        raise UnknownNameError("width group", name, (group.name for group in self.groups))

    def __iter__(self) -> Iterator[WidthGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __repr__(self) -> str:
        lines = [f"  {group.name}: {group.width}" for group in self.groups]
        return "\n".join([f"Graph of {type(self.model).__name__}, widths:", *lines])

    @property
    def widths(self) -> dict[str, int]:
        """The width of every group, in forward order."""
        return {group.name: group.width for group in self.groups}

    def tensors(self) -> dict[str, Tensor]:
        """The network's parameters and buffers by name."""
        return named_tensors(self.model)

    def shapes_now(self) -> dict[str, torch.Size]:
        """The shapes that edits rely on; a forward pass may replace buffers of its own."""
        lie_in = {s.parameter for group in self.groups for s in group.slices}
        return {
            name: tensor.shape
            for name, tensor in self.tensors().items()
            if isinstance(tensor, nn.Parameter) or name in lie_in
        }

    def cost(self, widths: Mapping[str, int] | None = None) -> Cost:
        """What the network costs, or would cost at other widths. Nothing is resized or run.

        Args:
            widths: group name -> width; groups not named keep theirs. None is the network as it
                is, with its zero weights counted; at other widths no weight counts as zero.

        Raises:
            UnknownNameError: no group of this name.
            EditError: the network was resized by something else than this graph.
            ValueError: a width that is no whole number or below 0.
        """
        self.check()
        if widths is not None:
            return self.cost_at(widths)
        nonzero = count_nonzero(list(self.model.parameters()))
        return self._cost_model.cost([g.width for g in self.groups], nonzero)

    def cost_at(self, widths: Mapping[str, int]) -> Cost:
        """`cost` without a look at the network first, for searches that ask thousands of times."""
        return self._cost_model.cost(self._widths_with(widths))

    def traffic_bytes(self, widths: Mapping[str, int]) -> int:
        """Bytes that operations write in one forward pass, on the inputs of `trace`; see `cost`."""
        return self._cost_model.traffic(self._widths_with(widths))

    def _widths_with(self, widths: Mapping[str, int]) -> list[int]:
        wanted = {self[name].name: width for name, width in widths.items()}
        for name, width in wanted.items():
            if isinstance(width, bool) or not isinstance(width, Integral) or width < 0:
                raise ValueError(f"cost: {name!r} cannot have {width!r} units")
        return [int(wanted.get(g.name, g.width)) for g in self.groups]

    def check(self) -> None:
        """Refuse to go on where the graph no longer describes the network.

        Raises:
            EditError: a tensor has another shape: `load`, another graph or a layer put in its
                place resized the network.
        """
        shapes = self.shapes_now()
        for name in [*self.shapes, *shapes]:
            expected, found = self.shapes.get(name), shapes.get(name)
            if expected != found:
                raise EditError(
                    f"the network was changed behind this graph's back ({name!r} has the shape "
                    f"{found and tuple(found)}, not {expected and tuple(expected)}); trace it again"
                )

    def apply(
        self,
        plan: Edit | Iterable[Edit],
        *,
        optimizer: Optimizers | None = None,
        compensate: Iterable[Inputs] | Tensor | None = None,
        seed: int | None = None,
    ) -> Receipt:
        """Change the network; see `dynopt_ray.structure.apply.apply_plan`."""
        return apply_plan(self, plan, optimizer=optimizer, compensate=compensate, seed=seed)

    def follow(self, log: Transaction) -> None:
        """Look at the network again after blocks came or went.

        Raises:
            EditError: it does not run, or gives something else.
        """
        names = {name for name, _ in [*self.model.named_modules(), *self.model.named_parameters()]}
        fixed = [name for name in self.asked.fixed if name in names]
        try:
            new = trace(self.model, self.asked.example_inputs, fixed, self.asked.heads)
        except TraceError as error:
            raise EditError(f"with other blocks the network does not run: {error}") from error
        if new._output_sizes != self._output_sizes:
            raise EditError(
                f"with other blocks the network gives {list(map(tuple, new._output_sizes))} in "
                f"place of {list(map(tuple, self._output_sizes))}"
            )
        for name in _DESCRIPTION:
            log.set_attribute(self, name, getattr(new, name))

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
    fixed = (fixed,) if isinstance(fixed, str) else tuple(fixed)
    if heads not in get_args(Heads):
        raise UnknownNameError("unit of attention", heads, get_args(Heads))
    _check_model(model)
    tensors = named_tensors(model)
    pinned = {_produced_by(tensors, name): _BY_CALLER for name in fixed}
    surroundings = Surroundings(model)
    paused = CollectorPaused()
    with paused, paused, surroundings, surroundings:
        passes = trace_at_own_sizes(model, example_inputs, tensors, heads, pinned)
        _warn_of_other_ways(passes.record, tensors)
        verdict = Verifier(model, example_inputs, tensors, passes, heads).verdict()
    return Graph(
        model,
        verdict.groups,
        {**passes.grouping.fixed, **verdict.fixed},
        attributes=verdict.attributes,
        cost_model=CostModel(tensors, passes.record, passes.grouping.only(verdict.groups)),
        passes=passes,
        asked=Asked(example_inputs, fixed, heads),
    )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"{model!r} is not a torch module")
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "the network"
        if hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{what} is compiled for the sizes that it has. Trace and edit what it was "
                "compiled from (._orig_mod of torch.compile): what torch.compile made of it "
                "follows by itself. A layer is best compiled in place, by its method .compile()."
            )
        kinds = {base.__name__ for base in type(module).__mro__}
        if wrapper := next((kind for kind in _WRAPPERS if kind in kinds), None):
            raise TraceError(
                f"{what} is wrapped in {wrapper}, which keeps the old sizes. Trace and edit the "
                f"inner module{_WRAPPERS[wrapper]} and wrap it again after each edit."
            )
    if not any(True for _ in model.parameters()):
        raise TraceError(f"{type(model).__name__} has no parameters, so it has no widths")
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise TraceError(
            "the network has lazy layers without shapes. Run it once on real data before tracing."
        )


def _warn_of_other_ways(record: Record, tensors: Mapping[str, Tensor]) -> None:
    missed = unused(record, tensors)
    if record.by_value and missed:
        modules = ", ".join(dict.fromkeys(map(producer_name, missed)))
        warnings.warn(
            f"the forward pass decides by values, and these inputs did not lead it to {modules}. "
            "What that reads is not known: "
            "trace with inputs that reach it, or name in `fixed` the widths it reads",
            stacklevel=3,
        )


def _produced_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """The parameter whose first dimension a name stands for."""
    for parameter in (name, f"{name}.weight", f"{name}.bias"):
        if parameter in tensors:
            return parameter
    for parameter in tensors:
        if producer_name(parameter) == name:
            return parameter
    raise UnknownNameError("module or parameter with a width", name, tensors)
