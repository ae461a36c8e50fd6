"""What tests of edits share: optimizers, references, and everything an edit may change."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._dynamo  # so that what holds compiling up is there to be left on
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.structure import Edit, Graph, Grow, Shrink, history_of, mask_of, trace
from dynopt_ray.structure.preserve.torch_state import TorchState
from tests.structure.zoo import trained

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5, maximize=True),
    "fused_sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "fused_adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "tensor_rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused_adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, maximize=True, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "nadamw": lambda p: torch.optim.NAdam(
        p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, foreach=True
    ),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "radamw": lambda p: torch.optim.RAdam(
        p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, foreach=True
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "plain_rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, maximize=True, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.3),
    "fused_adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1, fused=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "decayed_adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1, foreach=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "foreach_rprop": lambda p: torch.optim.Rprop(p, lr=0.01, maximize=True, foreach=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "averaging_asgd": lambda p: torch.optim.ASGD(p, lr=0.01, t0=0, foreach=True),
}
"""Each weight's step depends on that weight alone."""

# References, written the long way.


def in_double(name: str) -> tuple[nn.Module, Tensor]:
    """In double precision: an optimizer that divides by small moments magnifies rounding."""
    model, inputs = trained(name)
    return model.double(), inputs.double() if inputs.is_floating_point() else inputs


def step(model: nn.Module, inputs: Tensor, optimizer: Optimizer) -> None:
    """One step in evaluation mode, so that no batch statistics depend on removed units."""
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def every_second(width: int) -> tuple[int, ...]:
    return tuple(range(0, width - 1, 2)) if width > 1 else ()


def silence(graph: Graph, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Zero all that removed units read, make and give; statistics become neutral."""
    tensors = graph.tensors()
    with torch.no_grad():
        for group, units in removed.items():
            for s in graph[group].slices:
                value = 1.0 if s.parameter.endswith("running_var") else 0.0
                coordinates = s.positions[list(units)].flatten()
                tensors[s.parameter].index_fill_(s.dim, coordinates, value)


def shrunk_by_hand(
    model: nn.Module, graph: Graph, removed: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters())
    kept = {
        (name, dim): torch.ones(size, dtype=torch.bool)
        for name, tensor in tensors.items()
        for dim, size in enumerate(tensor.shape)
    }
    for group, units in removed.items():
        for s in graph[group].slices:
            if s.parameter in tensors:
                kept[s.parameter, s.dim][s.positions[list(units)].flatten()] = False
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        for dim in range(value.ndim):
            value = value.index_select(dim, kept[name, dim].nonzero().flatten())
        result[name] = value
    return result


Make = Callable[[Any], Optimizer]


def in_training(name: str, make: Make) -> tuple[nn.Module, Tensor, Optimizer]:
    """A network some steps into its training, in double precision."""
    model, inputs = in_double(name)
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, inputs, optimizer)
    return model, inputs, optimizer


def twin(model: nn.Module, optimizer: Optimizer, make: Make) -> tuple[nn.Module, Optimizer]:
    """A copy of a network with a copy of its optimizer."""
    other = copy.deepcopy(model)
    other_optimizer = make(other.parameters())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, other_optimizer


def after_growth(name: str, make: Make) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was there, after a step of the grown network and after one of the network as it was."""
    model, inputs, optimizer = in_training(name, make)
    old, old_optimizer = twin(model, optimizer, make)
    graph = trace(model, inputs)
    added = {group.name: (group.width, group.width + 1) for group in graph}
    graph.apply([Grow(group, units=2) for group in added], optimizer=optimizer)
    step(model, inputs, optimizer)
    step(old, inputs, old_optimizer)
    return shrunk_by_hand(model, graph, added), dict(old.named_parameters())


def after_shrinking(
    name: str, make: Make, num_steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is left, after steps of the shrunk network and of the whole one, partly silent."""
    model, inputs, optimizer = in_training(name, make)
    whole, whole_optimizer = twin(model, optimizer, make)
    graph, full = trace(model, inputs), trace(whole, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(full, removed)
    graph.apply([Shrink(g, remove=units) for g, units in removed.items()], optimizer=optimizer)
    for _ in range(num_steps):
        step(model, inputs, optimizer)
        step(whole, inputs, whole_optimizer)
        silence(full, removed)
    return dict(model.named_parameters()), shrunk_by_hand(whole, full, removed)


def plans(graph: Graph) -> st.SearchStrategy[list[Edit]]:
    """Random valid plans that touch each group at most once."""

    @st.composite
    def draw_plan(draw: st.DrawFn) -> list[Edit]:
        plan: list[Edit] = []
        for group in graph:
            choice = draw(st.sampled_from(["leave", "grow", "split", "shrink"]))
            if choice in ("grow", "split"):
                init: Any = "fresh" if choice == "grow" else "split"
                plan.append(Grow(group.name, units=draw(st.integers(1, 4)), init=init))
            elif choice == "shrink" and group.width > 2:
                # At width 1 a new trace may read a convolution of two groups as a depthwise one.
                units = st.integers(0, group.width - 1)
                gone = draw(st.sets(units, min_size=1, max_size=group.width - 2))
                plan.append(Shrink(group.name, remove=sorted(gone)))
        return plan or [Grow(graph.groups[0].name, units=1)]

    return draw_plan()


def everything(model: nn.Module, optimizer: Optimizer, graph: Graph) -> dict[str, Any]:
    """All that an edit may change, by a readable name."""
    found: dict[str, Any] = {
        "widths": graph.widths,
        "history": history_of(model),
        "receipts": list(graph.receipts),
        "shapes": graph.shapes,
        "random state": torch.get_rng_state(),
        "torch": vars(TorchState()),
        "options": [
            {**group, "params": [id(p) for p in group["params"]]}
            for group in optimizer.param_groups
        ],
        "optimizer hooks": list(optimizer._optimizer_step_post_hooks),
    }
    for name, tensor in graph.tensors().items():
        found[f"object {name}"] = id(tensor)
        found[f"learns {name}"] = tensor.requires_grad
        found[f"hooks {name}"] = list(tensor._backward_hooks or {})
        found[f"value {name}"] = tensor.detach().clone()
        if tensor.grad is not None:
            found[f"grad {name}"] = tensor.grad.clone()
        mask = mask_of(tensor)
        found[f"masked {name}"] = None if mask is None else mask.tolist()
        state = optimizer.state.get(tensor, {})
        for key, value in state.items():
            found[f"state {key} {name}"] = value.clone() if isinstance(value, Tensor) else value
    for name, module in model.named_modules():
        for key, content in vars(module).items():
            if isinstance(content, int | tuple):
                found[f"attribute {name}.{key}"] = content
            elif isinstance(content, dict):  # tensors, modules and hooks
                found[f"contents {name}.{key}"] = {k: id(v) for k, v in content.items()}
    for group in graph:
        for s in group.slices:
            found[f"positions {group.name} {s.dim} {s.parameter}"] = s.positions
    return found


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now.keys() == before.keys()
    for key, value in now.items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
        )
        assert same, key
