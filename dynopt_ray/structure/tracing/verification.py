"""Verify width groups: a group counts as resizable only if the network runs at another width.

The trace at the network's own sizes cannot see every use of a size: a forward pass may contain it
as a literal (`x.view(-1, 400)`) or keep it in an attribute of its own. So the network is traced
again with one more unit in every group. This trace shows what the network looks like at the new
widths, and edits are valid if they lead to the same network. So the network must run, its outputs
must keep their sizes, the same groups must lie in the same slices, and each unit must lie where an
edit puts it.

If a check fails, the groups at fault are found by halving the set of groups. Each of them is tried
again, first with integer attributes that equal one of its sizes and may have to follow it, then in
steps of 2, 4 and 8 units. A group that still fails is fixed. The comparison covers shapes and
positions, not values.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import TraceError
from dynopt_ray.structure.tracing.forward import Inputs, on_device
from dynopt_ray.structure.tracing.passes import Passes, trace_passes
from dynopt_ray.structure.tracing.tracer import Heads
from dynopt_ray.structure.tracing.trial_tensors import trial_tensors
from dynopt_ray.structure.tracing.values import OtherWayError
from dynopt_ray.structure.units import (
    Attribute,
    Change,
    OutsideSizes,
    Place,
    WidthGroup,
    attributes_changed,
    candidate_attributes,
    linked_attributes,
    moved_group,
    new_axes,
    only_shift,
)

_MOST_CHOICES = 16
_STEPS = (2, 4, 8)


_Kind = tuple[type[nn.Module], str, int | None]
"""An attribute of a class of modules: the class, the attribute's name, an index or None."""


@dataclass(frozen=True, eq=False)
class Verified:
    """The result of a verification.

    Attributes:
        groups: the groups that can be resized.
        attributes: the integer attributes that must follow them.
        fixed: name of a group or of a producer of its units -> why it cannot be resized.
    """

    groups: tuple[WidthGroup, ...]
    attributes: tuple[Attribute, ...]
    fixed: Mapping[str, str]


class Verifier:
    """Verifies the width groups of one network.

    Args:
        model: the network; its attributes are changed while it runs and then restored.
        inputs: the inputs of the network.
        tensors: its parameters and buffers.
        passes: the result of tracing it at its own sizes.
        heads: what a unit of attention is; see `Trace`.
        outside: the attributes that state widths outside the traced pass.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        tensors: Mapping[str, Tensor],
        passes: Passes,
        heads: Heads,
        outside: OutsideSizes,
    ) -> None:
        self._model = model
        self._inputs = on_device(inputs, passes.device)
        self._tensors = tensors
        self._passes = passes
        self._heads: Heads = heads
        self._outside = outside
        self._steps: dict[str, int] = {}
        self._hopeless: set[str] = set()
        self._unsolved: set[frozenset[_Kind]] = set()
        self._seen: Passes | None = None
        self._linked = linked_attributes(passes.record.links, passes.grouping)

    def verdict(self) -> Verified:
        """Find the groups that can be resized and the attributes that must follow them.

        Raises:
            TraceError: the network fails at its own sizes, too.
        """
        pending = list(self._passes.grouping.groups)
        found = [*self._outside.follow]
        fixed: dict[str, str] = {}
        searched: set[str] = set()
        outcome = self._attempt(pending, found)
        while isinstance(outcome, str):
            if not pending:
                raise TraceError(
                    f"{type(self._model).__name__} runs other operations each time it is called "
                    f"with the same inputs: {outcome}"
                )
            culprits = self._culprits(pending, found, outcome)
            for culprit, reason in culprits.items():
                found = [a for a in found if culprit.name not in a.per_unit]
                solution = None if culprit.name in searched else self._search(culprit, found)
                searched.add(culprit.name)
                if solution is None and self._in_steps(culprit, reason):
                    continue
                if solution is None:
                    fixed = {**dict.fromkeys(culprit.producers, reason), **fixed}
                    fixed[culprit.name] = reason
                    pending.remove(culprit)
                    continue
                found += solution
                others = [g for g in pending if g.name not in searched and g not in culprits]
                found += self._alike(solution, others, {a.place for a in found})
            outcome = self._attempt(pending, found)
        if not {a.place for a in self._outside.follow} <= {a.place for a in found}:
            found += self._harmless(pending, found)
        inexact = self._computed_with([*self._linked, *found]) | self._divided_otherwise()
        groups = tuple(
            self._confirmed(group, outcome[group.name], inexact.get(group.name))
            for group in pending
        )
        return Verified(groups, (*self._linked, *found), fixed)

    def _harmless(
        self, groups: Sequence[WidthGroup], found: Sequence[Attribute]
    ) -> list[Attribute]:
        """Return the attributes outside the pass that can follow their groups, found by halving."""
        names, known = {group.name for group in groups}, {a.place for a in found}
        harmless: list[Attribute] = []
        untried = [[a for a in self._outside.follow if a.place not in known]]
        while untried:
            part = [a for a in untried.pop() if a.per_unit.keys() <= names]
            if not part:
                continue
            if isinstance(self._attempt(groups, [*found, *harmless, *part]), dict):
                harmless += part
            elif len(part) > 1:
                untried += [part[: len(part) // 2], part[len(part) // 2 :]]
        return harmless

    def _confirmed(self, group: WidthGroup, wider: WidthGroup, cause: str | None) -> WidthGroup:
        """Return the group with its final runs and step, and why its growth is not exact, if so."""
        group = replace(_with_runs(group, wider), step=self._step(group))
        return replace(group, exact_growth=False, why_inexact=cause) if cause else group

    def _computed_with(self, attributes: Sequence[Attribute]) -> dict[str, str]:
        """Return the groups whose sizes the forward pass uses as values, with the reason.

        A value that is the same at the other width (the size of a head if heads are added) does
        not count.
        """
        followed = {a.place: a.per_unit for a in attributes}
        grouping, found = self._passes.grouping, {}
        wider = self._seen.record.numbers if self._seen else []
        for use, other in itertools.zip_longest(self._passes.record.numbers, wider):
            if use is None or (other is not None and use.number == other.number):
                continue
            for source in use.sources:
                if isinstance(source, tuple):
                    names: Iterable[str] = followed.get(source, ())
                    cause = f"the forward pass computes with {_attribute_name(source)}"
                else:
                    numbers = np.unique(grouping.group_of[source])
                    names = [grouping.groups[n].name for n in numbers.tolist() if n >= 0]
                    cause = "the forward pass computes with their number"
                found.update({name: cause for name in names if name not in found})
        return found

    def _divided_otherwise(self) -> dict[str, str]:
        """Return the groups of one unit that a view divides differently at another width.

        If 2 heads of 3 coordinates are one unit, 2 heads of 6 coordinates may be two units: what
        was in both heads is then in the first one.
        """
        now, wider = self._passes, self._seen
        single = {i: g.name for i, g in enumerate(now.grouping.groups) if g.width == 1}
        if not single or wider is None:
            return {}
        twins = {group.name: i for i, group in enumerate(wider.grouping.groups)}
        found: dict[str, str] = {}
        for ids, more in zip(now.record.factors, wider.record.factors, strict=False):
            for number in single.keys() & set(now.grouping.group_of[ids].flat):
                name = single[number]
                before = now.grouping.extents(ids, number)
                if name in twins and before != wider.grouping.extents(more, twins[name]):
                    found[name] = "a view divides the coordinates of a unit by their number"
        return found

    def _step(self, group: WidthGroup) -> int:
        return self._steps.get(group.name, 1)

    def _in_steps(self, group: WidthGroup, reason: str) -> bool:
        """Return whether the group can be resized in steps (some operations need aligned rows)."""
        reason = re.sub(r"\d+", "", reason)
        if group.name in self._steps or reason in self._hopeless:
            return False
        for step in _STEPS:
            self._steps[group.name] = step
            if isinstance(self._attempt([group], []), dict):
                return True
        del self._steps[group.name]
        self._hopeless.add(reason)
        return False

    def _attempt(
        self, groups: Sequence[WidthGroup], found: Sequence[Attribute]
    ) -> str | dict[str, WidthGroup]:
        """Trace with each group wider by its step; return the groups found, or what failed."""
        added = {group.name: self._step(group) for group in groups}
        tensors = trial_tensors(self._tensors, groups, added, self._device)
        try:
            with attributes_changed(self._model, [*self._linked, *found], added):
                seen = trace_passes(
                    self._model,
                    self._inputs,
                    tensors,
                    heads=self._heads,
                    device=self._device,
                    with_costs=False,
                    counted=self._outside.tie,
                    reads=self._passes.reads,
                    families=self._passes.families,
                    pinned=self._passes.pinned,
                )
        except OtherWayError as error:
            return f"at another width, the forward pass takes another way: {error}"
        except OF_THE_MACHINE:
            raise
        except Exception as error:
            # The network's forward ran at a size that it was not written for, so it may raise
            # any error.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"its size is written into the forward pass ({reason})"
        if seen.output_sizes != self._passes.output_sizes:
            return f"the output's size would become {[tuple(s) for s in seen.output_sizes]}"
        now = {group.name: group for group in seen.grouping.groups}
        for group in groups:
            twin = now.get(group.name)
            wider = group.width + added[group.name]
            if twin is None or twin.width != wider or _layout(twin) != _layout(group):
                return "at another width, the forward pass groups its units differently"
        misplaced = self._misplaced([_with_runs(g, now[g.name]) for g in groups], now)
        if misplaced is None:
            self._seen = seen
        return misplaced or now

    def _misplaced(self, groups: Sequence[WidthGroup], now: Mapping[str, WidthGroup]) -> str | None:
        """Return a reason if units lie elsewhere than an edit puts them (`x[:, ::2]`, a rotation).

        In a trace, the positions of units depend on their number alone. So the wider trace must
        agree with two edits that lead to its widths: one only adds units, the other removes the
        first unit of each group and adds one unit more.
        """
        if only_shift(groups, now):
            return None
        keys = {(s.parameter, s.dim) for g in groups for s in g.slices}
        sizes = {(name, dim): self._tensors[name].shape[dim] for name, dim in keys}
        for gone in (0, 1):
            changes = [
                Change(
                    g,
                    torch.arange(gone, g.width, device="cpu"),
                    torch.full((self._step(g) + gone,), -1, device="cpu"),
                )
                for g in groups
            ]
            axes = new_axes(changes, sizes)
            for change in changes:
                on_device = moved_group(change.group, change, axes)
                wider = {(s.parameter, s.dim): s.positions for s in now[on_device.name].slices}
                for s in on_device.slices:
                    if not torch.equal(s.positions, wider[s.parameter, s.dim]):
                        return f"at another width its units lie in another order in {s.parameter!r}"
        return None

    def _culprits(
        self, groups: Sequence[WidthGroup], found: Sequence[Attribute], reason: str
    ) -> dict[WidthGroup, str]:
        """Find by halving the groups that make the network fail, each with the reason.

        If two halves fail only together, the last group of the second half is blamed.
        """
        if len(groups) == 1:
            return {groups[0]: reason}
        half = len(groups) // 2
        culprits: dict[WidthGroup, str] = {}
        for part in (groups[:half], groups[half:]):
            outcome = self._attempt(part, found)
            if isinstance(outcome, str):
                culprits |= self._culprits(part, found, outcome)
        return culprits or {groups[-1]: reason}

    def _search(self, group: WidthGroup, found: Sequence[Attribute]) -> list[Attribute] | None:
        """Return the smallest set of attributes with which the network runs at another width."""
        known = {a.place for a in (*self._linked, *found)}
        free = [a for a in candidate_attributes(self._model, group) if a.place not in known]
        kinds = frozenset(map(self._kind, free))
        if kinds in self._unsolved:
            return None
        sizes = range(len(free) + 1)
        choices = itertools.chain.from_iterable(itertools.combinations(free, n) for n in sizes)
        for choice in itertools.islice(choices, _MOST_CHOICES):
            if isinstance(self._attempt([group], choice), dict):
                return list(choice)
        self._unsolved.add(kinds)
        return None

    def _alike(
        self, solution: Sequence[Attribute], groups: Sequence[WidthGroup], known: set[Place]
    ) -> list[Attribute]:
        """Return the same attributes of other modules of the same class, to search only once."""
        kinds = {self._kind(attribute) for attribute in solution}
        alike: dict[Place, Attribute] = {}
        for attribute in (a for g in groups for a in candidate_attributes(self._model, g)):
            if self._kind(attribute) in kinds and attribute.place not in known:
                alike.setdefault(attribute.place, attribute)
        return list(alike.values())

    def _kind(self, attribute: Attribute) -> _Kind:
        module = self._model.get_submodule(attribute.module)
        return type(module), attribute.name, attribute.index

    @property
    def _device(self) -> torch.device:
        return self._passes.device


def _attribute_name(place: Place) -> str:
    """Return an attribute as it is written in code, with its module's name."""
    module, name, index = place
    entry = "" if index is None else f"[{index}]"
    return f"{module}.{name}{entry}" if module else f"{name}{entry}"


def _layout(group: WidthGroup) -> list[tuple[str, int, int]]:
    return sorted((s.parameter, s.dim, s.positions.shape[1]) for s in group.slices)


def _with_runs(group: WidthGroup, wider: WidthGroup) -> WidthGroup:
    """Return the group with the runs of a wider trace: with one unit, runs are ambiguous."""
    runs = {(s.parameter, s.dim): s.runs for s in wider.slices}
    slices = tuple(replace(s, runs=runs[s.parameter, s.dim]) for s in group.slices)
    return replace(group, slices=slices)
