"""Properties that every network has, whatever it is made of.

`python -m tests.structure.fuzzed_properties 17` prints network 17 and checks it; `17 40` checks a
range of networks and counts what was found.
"""

import copy
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph, Grow, Shrink, WidthGroup, load, save, trace
from dynopt_ray.structure.units import producer_name
from tests.structure.editing import assert_same, everything, shrunk_by_hand, twin
from tests.structure.fuzzed_networks import Network, network

LONGER = 2
_TRIED_BY_HAND = range(1, 13)
_SHARE_SPLIT = 0.25
_SIZES = ("out_features", "in_features", "out_channels", "in_channels", "num_features")
_MOST_DRAWS = 4


class Checked:
    """A network some steps into its training, traced, with its optimizer."""

    def __init__(self, number: int) -> None:
        self.net: Network = network(number)
        self.model = self.net.model
        self.random = random.Random(number)
        self.make = self.random.choice([_momentum, _momentum, _adam])
        self.optimizer = self.make(self.model.parameters())
        self.is_linear = self.make is _momentum
        _train(self.net, self.model, self.optimizer, 2)
        self.model.eval()
        self.graph: Graph = trace(self.model, self.net.inputs(2), heads=self.net.heads)

    def outputs(self) -> list[Tensor]:
        """In evaluation mode, and in training mode if nothing is drawn there; other inputs."""
        inputs = self.net.inputs(3, seed=1, longer=LONGER)
        with torch.no_grad():
            found = [self.model(inputs)]
            if not self.net.is_random:
                buffers = {name: b.clone() for name, b in self.model.named_buffers()}
                found.append(self.model.train()(inputs))
                self.model.eval()
                for name, b in self.model.named_buffers():
                    b.copy_(buffers[name])
        return found

    def apply(self, *plan: Any) -> None:
        self.graph.apply(plan, optimizer=self.optimizer)

    def undo(self) -> None:
        self.graph.receipts[-1].undo()

    def now(self) -> dict[str, Any]:
        torch.manual_seed(0)
        return everything(self.model, self.optimizer, self.graph)


def check(number: int) -> None:
    """Check all properties of a network.

    Raises:
        AssertionError: one does not hold; the message describes the network.
    """
    checked = None
    try:
        checked = Checked(number)
        before = checked.now()
        reasons_are_true(checked)
        units_are_as_small_as_can_be(checked)
        for group in checked.graph.groups:
            grows_and_returns(checked, group.name)
        unread_units_leave(checked)
        all_grow_at_once(checked)
        assert_same(checked.now(), before)
        everything_halves(checked)
    except Exception as error:
        graph = "" if checked is None else f"\n{checked.graph!r}\nfixed: {checked.graph.fixed}"
        what = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{what}\n{network(number)}{graph}") from error


def grows_and_returns(checked: Checked, name: str) -> None:
    """Growth that is claimed to be exact is; the new units learn, and leave without a trace."""
    graph, model = checked.graph, checked.model
    group = graph[name]
    before, tensors = checked.outputs(), _copies(graph)
    units = group.step * checked.random.choice([1, 2, 3])
    split = group.exact_growth and checked.random.random() < _SHARE_SPLIT
    checked.apply(Grow(name, units=units, exact=group.exact_growth))
    if group.exact_growth:
        assert_close(checked.outputs(), before, f"growing {name!r}")
    sizes_fit(model)
    new = range(group.width, group.width + units)
    checked.apply(Shrink(name, remove=new))
    for tensor, value in graph.tensors().items():
        assert torch.equal(value, tensors[tensor]), f"{tensor} after {name!r} grew and shrank"
    model(checked.net.inputs(2))
    checked.undo()
    checked.undo()
    if group.exact_growth:
        new_units_learn(checked, name)
    if split:
        try:
            checked.apply(Grow(name, units=units, init="split"))
        except EditError as error:
            if "is not linear" not in str(error):
                raise
        else:
            assert_close(checked.outputs(), before, f"splitting units of {name!r}")
            checked.undo()


def sizes_fit(model: nn.Module) -> None:
    """Layers state the sizes that their weights have."""
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and type(module).__module__.startswith("torch."):
            made, read = weight.shape[0], weight.shape[-1]
            if weight.ndim > 2:
                made, read = made, weight.shape[1] * module.groups
            if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
                made, read = read, made
            sizes = dict(zip(_SIZES, (made, read, made, read, made), strict=True))
            stated = {a: getattr(module, a) for a in _SIZES if hasattr(module, a)}
            assert stated.items() <= sizes.items(), (
                f"{name} states {stated}, its weight has {sizes}"
            )


def new_units_learn(checked: Checked, name: str) -> None:
    """For one of a few draws of new weights, new units have gradients wherever old ones have."""
    graph = checked.graph
    old_width, missing = graph[name].width, {""}
    for seed in range(_MOST_DRAWS):
        units = 4 * graph[name].step
        graph.apply(Grow(name, units=units), optimizer=checked.optimizer, seed=seed)
        missing = _without_gradient(checked, graph[name], old_width)
        checked.undo()
        if not missing:
            return
    raise AssertionError(f"new units of {name!r} have no gradient: {missing}")


def _without_gradient(checked: Checked, group: WidthGroup, old_width: int) -> set[str]:
    """The roles in which old units have gradients after a step, and new ones do not."""
    model = copy.deepcopy(checked.model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, target = checked.net.inputs(16, seed=2), torch.Generator().manual_seed(3)
    for last in (False, True):
        optimizer.zero_grad()
        out = model(inputs)
        goal = torch.randn(out.shape, generator=target, dtype=out.dtype)
        (out - goal).square().mean().backward()
        if not last:
            optimizer.step()
    parameters = dict(model.named_parameters())
    old: set[str] = set()
    new: set[str] = set()
    for s in group.slices:
        if s.parameter in parameters:
            grad = parameters[s.parameter].grad
            assert grad is not None, f"{s.parameter} has no gradient"
            for units, found in ((slice(None, old_width), old), (slice(old_width, None), new)):
                if grad.index_select(s.dim, s.positions[units].flatten()).any():
                    found.add(s.role)
    return (old - new) & {"in", "out"}


def unread_units_leave(checked: Checked) -> None:
    """Removing units whose readers are zero does not change the outputs."""
    graph = checked.graph
    for group in graph.groups:
        most = (group.width - group.min_width) // group.step * group.step
        if not group.exact_growth or most < 1:
            continue
        count = checked.random.randrange(group.step, most + 1, group.step)
        units = sorted(checked.random.sample(range(group.width), count))
        tensors = graph.tensors()
        old: dict[str, Tensor] = {}
        for s in group.slices:
            if s.role == "in":
                old.setdefault(s.parameter, tensors[s.parameter].detach().clone())
                index = s.positions[units].flatten()
                tensors[s.parameter].detach().index_fill_(s.dim, index, 0)
        before = checked.outputs()
        checked.apply(Shrink(group.name, remove=units))
        assert_close(checked.outputs(), before, f"removing unread units of {group.name!r}")
        checked.undo()
        for name, value in old.items():
            graph.tensors()[name].detach().copy_(value)


def all_grow_at_once(checked: Checked) -> None:
    """One plan grows all; a step of the optimizer afterwards is that of the network before."""
    graph = checked.graph
    plan = [Grow(g.name, units=g.step) for g in graph.groups if g.exact_growth]
    if not plan:
        return
    model, inputs = checked.model, checked.net.inputs(4, seed=4)
    before = checked.outputs()
    old = twin(model, checked.optimizer, checked.make)
    added = {edit.group: graph[edit.group].width for edit in plan}
    checked.apply(*plan)
    assert_close(checked.outputs(), before, "growing all")
    grown = twin(model, checked.optimizer, checked.make)
    for one, optimizer in (old, grown):
        optimizer.zero_grad()
        one(inputs).square().mean().backward()
        optimizer.step()
    units = {name: tuple(range(width, graph[name].width)) for name, width in added.items()}
    stepped = shrunk_by_hand(grown[0], graph, units)
    if checked.is_linear:  # others magnify the rounding of gradients that are nearly zero
        for name, parameter in old[0].named_parameters():
            assert_close([stepped[name]], [parameter.detach()], f"a step of {name} after growth")
    checked.undo()


def everything_halves(checked: Checked) -> None:
    """Half of each group leaves; the rest runs, trains, saves, loads, and can be undone."""
    graph, net, model = checked.graph, checked.net, checked.model
    plan = []
    for g in graph.groups:
        keep = max(g.min_width, g.width - g.width // 2 // g.step * g.step)
        if keep < g.width:
            kept = sorted(checked.random.sample(range(g.width), keep))
            plan.append(Shrink(g.name, keep=kept))
    if not plan:
        return
    before = checked.now()
    checked.apply(*plan)
    checked.undo()
    assert_same(checked.now(), before)
    checked.apply(*plan)
    sizes_fit(model)
    touched = [s.parameter for edit in plan for s in graph[edit.group].slices]
    _train(net, model, checked.optimizer, 3, longer=LONGER)
    for p, values in checked.optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                assert value.shape == p.shape, f"{key} of a parameter of shape {tuple(p.shape)}"
    model.eval()
    inputs = net.inputs(5, seed=5, longer=LONGER)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        out = model(inputs)
        assert out.isfinite().all(), "outputs after training"
        path = Path(folder) / "halved"
        save(path, model, checked.optimizer)
        fresh = network(net.number).model
        optimizer = checked.make(fresh.parameters())
        load(path, fresh, optimizer)
        assert_close([fresh.eval()(inputs)], [out], "outputs after loading")
        saved = dict(fresh.state_dict())
        assert all(torch.equal(saved[n], t) for n, t in model.state_dict().items()), "loaded"
    again = trace(model, net.inputs(2), heads=net.heads).widths
    other = {n: (w, again[n]) for n, w in graph.widths.items() if w > 1 and again.get(n, w) != w}
    assert not other, f"traced again, groups have other widths: {other}"
    checked.undo()
    after = checked.now()
    for key, value in before.items():  # training changed what the plan did not touch
        if key.split()[0] in ("value", "state") and key.split()[-1] in touched:
            assert_same({key: after[key]}, {key: value})


def reasons_are_true(checked: Checked) -> None:
    """What is fixed has a reason: constructed wider by hand, the network breaks."""
    graph, net = checked.graph, checked.net
    assert all(reason.strip() for reason in graph.fixed.values())
    names = {id(module): name for name, module in net.model.named_modules()}
    names |= {id(p): producer_name(name) for name, p in net.model.named_parameters()}
    for number, width in enumerate(net.widths):
        makers = [names[id(maker)] for maker in width.makers]
        fixed = [name for name in makers if name in graph.fixed and name not in graph.index]
        known = [name for name in makers if name in graph.index or name in graph.fixed]
        assert known or not makers, f"{makers} neither fixed nor in a group"
        if width.pins:
            continue
        if fixed:
            tried = _TRIED_BY_HAND[1::2] if width.divided else _TRIED_BY_HAND
            fits = [added for added in tried if _runs_wider(net, number, added)]
            assert not fits, (
                f"{fixed[0]!r} is fixed ({graph.fixed[fixed[0]]}), but fits {fits} more"
            )


def units_are_as_small_as_can_be(checked: Checked) -> None:
    """Each channel is a unit, or two of them if something divides the channels in halves."""
    graph, net = checked.graph, checked.net
    made = Counter(id(maker) for width in net.widths for maker in width.makers)
    names = {id(module): name for name, module in net.model.named_modules()}
    for width in net.widths:
        own = [m for m in width.makers if made[id(m)] == 1 and names.get(id(m)) in graph.index]
        if own and not width.pins:
            group = graph[names[id(own[0])]]
            expected = width.base // (2 if width.divided else 1)
            if "norm" in width.divided:  # over each half, so a half is a unit
                expected = 2
            assert group.width == expected, f"{group}: {width.base} channels, {expected} units"


def _runs_wider(net: Network, number: int, added: int) -> bool:
    inputs = net.inputs(2)
    try:
        wider = network(net.number, {number: added}).model.eval()
        with torch.no_grad():
            return bool(wider(inputs).shape == net.model(inputs).shape)
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return False


def assert_close(found: Iterable[Tensor], expected: Iterable[Tensor], what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}[one.dtype]
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance * scale, msg=lambda m: f"{what}: {m}"
        )


def _momentum(parameters: Any, lr: float = 0.01) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=0.01)


def _adam(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.002)


def _train(
    net: Network, model: nn.Module, optimizer: Optimizer, steps: int, longer: int = 0
) -> None:
    torch.manual_seed(1)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        out = model(net.inputs(4, seed=10 + step, longer=longer))
        out.tanh().square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def _copies(graph: Graph) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in graph.tensors().items()}


def _main(first: int, last: int) -> None:
    found: Counter[str] = Counter()
    for number in range(first, last + 1):
        try:
            check(number)
        except AssertionError as error:
            lines = str(error).splitlines()
            print(f"--- {number}: {lines[0]}", flush=True)
            if first == last:
                traceback.print_exc()
            found[lines[0][:60]] += 1
    print(f"{last - first + 1} networks, {found.total()} failures")
    for kind, count in found.most_common():
        print(f"{count:5}  {kind}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = [int(text) for text in sys.argv[1:]]
    if len(numbers) == 1:
        print(network(numbers[0]))
    _main(numbers[0], numbers[-1])
