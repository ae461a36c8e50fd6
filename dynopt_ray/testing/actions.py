"""The conformance kit for actions."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dynopt_ray.policies import (
    Action,
    Descriptors,
    GraphEvidence,
    StackEvidence,
    describe_graph,
    stack_descriptors,
)
from dynopt_ray.population import Population
from dynopt_ray.structure import Graph, masked_parameters, plan_from_json, plan_to_json, trace
from dynopt_ray.testing.requirement import require

_NUM_MEMBERS = 3
_NUM_ROWS = 64
_NUM_CLASSES = 3


def check_action(make: Callable[[], Action]) -> None:
    """Check that an action meets its contract.

    On small networks the action must:

    - be legal only where its plan has edits, unless it is an action that changes nothing;
    - make plans that survive JSON and can be applied;
    - lower the costs that it says it lowers;
    - in its stacked form, change the chosen members as the plan changes a real network, and change
      no other members;
    - survive pickling and be equal to its pickled copy, because it is sent to workers.

    Args:
        make: makes the action with its default settings.

    Raises:
        AssertionError: the action breaks the contract; the message says how.

    Example:
        >>> from dynopt_ray.policies import ShrinkUnits
        >>> check_action(ShrinkUnits)
    """
    action = make()
    require(
        isinstance(action.label, str) and bool(action.label), "label must be a non-empty string"
    )
    require(
        pickle.loads(pickle.dumps(action)) == action,
        "the action is not equal to its pickled copy: use a frozen dataclass",
    )
    for group in range(2):
        _check_group(action, group)


def _check_group(action: Action, group: int) -> None:
    graphs = [_graph(seed) for seed in range(_NUM_MEMBERS)]
    networks = stack_descriptors([_described(graph, group) for graph in graphs])
    legal = action.legal(networks)
    require(
        legal.shape == (_NUM_MEMBERS,) and legal.dtype == np.bool_,
        f"legal returns {legal.dtype} of shape {legal.shape}, not bool of shape ({_NUM_MEMBERS},)",
    )
    stacked = Population(_model(0), _NUM_MEMBERS)
    for member, graph in enumerate(graphs):
        stacked.load(member, graph.model)
    chosen = np.flatnonzero(legal)[1:]  # the first member must stay as it is
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_NUM_ROWS, 6, generator=generator)
    y = torch.randint(_NUM_CLASSES, (_NUM_ROWS,), generator=generator)
    action.apply_stacked(stacked, chosen, networks, StackEvidence(stacked, x, y))
    for member, graph in enumerate(graphs):
        if member in chosen:
            evidence = GraphEvidence(graph, [(x, y)], torch.nn.functional.cross_entropy)
            _carry_out(action, graph, networks.row(member), evidence)
        _require_same(stacked, member, graph)


def _carry_out(action: Action, graph: Graph, network: Descriptors, evidence: GraphEvidence) -> None:
    plan = action.plan(graph, network, evidence)
    before = graph.cost()
    if not plan:
        require(not action.lowers, "the action is legal and lowers costs, but its plan is empty")
        return
    require(not action.ends, "an action that ends the episode must have no edits")
    graph.apply(plan_from_json(plan_to_json(plan)), compensate=evidence.inputs)
    after = graph.cost()
    for kind in action.lowers - {"latency_ms"}:
        require(
            getattr(after, kind) < getattr(before, kind),
            f"the action names {kind} in `lowers`, but its plan does not lower it",
        )


def _require_same(stacked: Population, member: int, graph: Graph) -> None:
    """Require that a member equals the real network in widths, masks and outputs."""
    widths = stacked.widths[member].tolist()
    require(
        widths == [group.width for group in graph.groups],
        f"the stacked member {member} has the widths {widths}; the real network has {graph.widths}",
    )
    real = copy.deepcopy(graph.model)
    unstacked = stacked.to_module(member)
    masks = [
        {name: keep.tolist() for name, keep in masked_parameters(model).items()}
        for model in (graph.model, unstacked)
    ]
    require(
        masks[0] == masks[1],
        f"the stacked member {member} has other masks than the real network",
    )
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        require(
            torch.allclose(real(x), unstacked(x), atol=1e-4),
            f"the stacked member {member} has other outputs than the real network",
        )


def _model(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
        )


def _graph(seed: int) -> Graph:
    return trace(_model(seed), torch.zeros(1, 6))


def _described(graph: Graph, group: int) -> Descriptors:
    return describe_graph(graph, group, start_widths=graph.widths, start_cost=graph.cost())
