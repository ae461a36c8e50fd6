"""Proof by running: a group counts as resizable only if the network runs at another width.

A forward pass may use a size as a literal (`x.view(-1, 400)`) or keep it in an attribute of its
own. So the network is traced once more with one unit added to every group. Where that fails, the
groups at fault are searched by halving; each is given the integer attributes that equal its size,
and is fixed if no choice of them makes the network run.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynopt_ray.structure.tracing.forward import Inputs, moved, shells
from dynopt_ray.structure.tracing.passes import Passes, trace_passes
from dynopt_ray.structure.tracing.tracer import Heads
from dynopt_ray.structure.units import (
    Attribute,
    Change,
    Place,
    WidthGroup,
    attributes_changed,
    candidates,
    linked,
    moved_group,
    new_axes,
    only_shift,
)

_MOST_CHOICES = 16
_STEPS = (2, 4, 8)


_Kind = tuple[type[nn.Module], str, int | None]
"""An attribute of a class of modules."""


@dataclass(frozen=True, eq=False)
class Verified:
    """What running at other widths showed.

    Attributes:
        groups: those that can be resized.
        attributes: the integer attributes that must follow them.
        fixed: group name -> why it cannot be resized.
    """

    groups: tuple[WidthGroup, ...]
    attributes: tuple[Attribute, ...]
    fixed: Mapping[str, str]


class Verifier:
    """Runs one network at other widths.

    Args:
        model: the network; its attributes are changed while it runs and then put back.
        inputs: what it is called with.
        tensors: its parameters and buffers.
        passes: what tracing it at its own sizes showed.
        heads: what a unit of attention is.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        tensors: Mapping[str, Tensor],
        passes: Passes,
        heads: Heads,
    ) -> None:
        self._model = model
        self._inputs = moved(inputs, passes.device)
        self._tensors = tensors
        self._passes = passes
        self._heads: Heads = heads
        self._steps: dict[str, int] = {}
        self._hopeless: set[str] = set()
        self._unsolved: set[frozenset[_Kind]] = set()
        self._linked = linked(passes.record.links, passes.grouping)

    def verdict(self) -> Verified:
        """Which groups can be resized, and what must follow them."""
        pending = list(self._passes.grouping.groups)
        found: list[Attribute] = []
        fixed: dict[str, str] = {}
        searched: set[str] = set()
        while (outcome := self._attempt(pending, found)) and isinstance(outcome, str):
            culprits = self._culprits(pending, found, outcome)
            for culprit, reason in culprits.items():
                found = [a for a in found if culprit.name not in a.per_unit]
                solution = None if culprit.name in searched else self._search(culprit, found)
                searched.add(culprit.name)
                if solution is None and self._in_steps(culprit, reason):
                    continue
                if solution is None:
                    fixed[culprit.name] = reason
                    pending.remove(culprit)
                    continue
                found += solution
                others = [g for g in pending if g.name not in searched and g not in culprits]
                found += self._alike(solution, others, {a.place for a in found})
        runs = outcome if isinstance(outcome, dict) else {}
        groups = tuple(self._confirmed(group, runs[group.name], found) for group in pending)
        return Verified(groups, (*self._linked, *found), fixed)

    def _confirmed(
        self, group: WidthGroup, wider: WidthGroup, found: Sequence[Attribute]
    ) -> WidthGroup:
        """A group as it is told: an attribute that follows it may also scale the result."""
        valued = self._passes.record.valued
        scales = any(group.name in a.per_unit and a.place in valued for a in found)
        group = replace(_with_runs(group, wider), step=self._step(group))
        return replace(group, exact_growth=False) if scales else group

    def _step(self, group: WidthGroup) -> int:
        return self._steps.get(group.name, 1)

    def _in_steps(self, group: WidthGroup, reason: str) -> bool:
        """Whether several units at once can come and go (where rows must be aligned)."""
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
        """Run with one more unit in each group: the groups then found, or what went wrong."""
        added = {group.name: self._step(group) for group in groups}
        tensors = shells(self._tensors, resized_shapes(self._tensors, groups, added), self._device)
        try:
            with attributes_changed(self._model, [*self._linked, *found], added):
                seen = trace_passes(
                    self._model,
                    self._inputs,
                    tensors,
                    heads=self._heads,
                    device=self._device,
                    with_costs=False,
                )
        except Exception as error:
            # The network's own forward ran at a size it was not written for: anything may come.
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            return f"its size is written into the forward pass ({reason})"
        if seen.output_sizes != self._passes.output_sizes:
            return f"the output's size would become {[tuple(s) for s in seen.output_sizes]}"
        now = {group.name: group for group in seen.grouping.groups}
        for group in groups:
            twin = now.get(group.name)
            wider = group.width + added[group.name]
            if twin is None or twin.width != wider or _layout(twin) != _layout(group):
                return "with one more unit, others are read in their place"
        misplaced = self._misplaced([_with_runs(g, now[g.name]) for g in groups], now)
        return misplaced or now

    def _misplaced(self, groups: Sequence[WidthGroup], now: Mapping[str, WidthGroup]) -> str | None:
        """Whether units lie elsewhere than an edit would put them (`x[:, ::2]`, a rotation).

        Where they lie depends on their number alone, so one more unit can be one that came, or
        two for the first, which went.
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
                moved = moved_group(change.group, change, axes)
                wider = {(s.parameter, s.dim): s.positions for s in now[moved.name].slices}
                for s in moved.slices:
                    if not torch.equal(s.positions, wider[s.parameter, s.dim]):
                        return f"at another width its units lie in another order in {s.parameter!r}"
        return None

    def _culprits(
        self, groups: Sequence[WidthGroup], found: Sequence[Attribute], reason: str
    ) -> dict[WidthGroup, str]:
        """The groups that make the network fail and how, found by halving.

        Where the halves fail only together, one of the second half.
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
        """The smallest choice of attributes with which the network runs."""
        known = {a.place for a in (*self._linked, *found)}
        free = [a for a in candidates(self._model, group) if a.place not in known]
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
        """The same attributes in other modules of the same class: one search serves all blocks."""
        kinds = {self._kind(attribute) for attribute in solution}
        alike: dict[Place, Attribute] = {}
        for attribute in (a for g in groups for a in candidates(self._model, g)):
            if self._kind(attribute) in kinds and attribute.place not in known:
                alike.setdefault(attribute.place, attribute)
        return list(alike.values())

    def _kind(self, attribute: Attribute) -> _Kind:
        module = self._model.get_submodule(attribute.module)
        return type(module), attribute.name, attribute.index

    @property
    def _device(self) -> torch.device:
        return self._passes.device


def resized_shapes(
    tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup], added: Mapping[str, int]
) -> dict[str, list[int]]:
    """The shapes of the tensors that change when `added[group]` units come (or go)."""
    shapes: dict[str, list[int]] = {}
    for group in groups:
        for s in group.slices:
            shape = shapes.setdefault(s.parameter, list(tensors[s.parameter].shape))
            shape[s.dim] += added.get(group.name, 0) * s.positions.shape[1]
    return shapes


def _layout(group: WidthGroup) -> list[tuple[str, int, int]]:
    return sorted((s.parameter, s.dim, s.positions.shape[1]) for s in group.slices)


def _with_runs(group: WidthGroup, wider: WidthGroup) -> WidthGroup:
    """The same group, its runs read where they are unambiguous: with at least two units."""
    runs = {(s.parameter, s.dim): s.runs for s in wider.slices}
    slices = tuple(replace(s, runs=runs[s.parameter, s.dim]) for s in group.slices)
    return replace(group, slices=slices)
