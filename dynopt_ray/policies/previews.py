"""Previews: what each action would do to a network, measured before one of them is chosen.

Each action is carried out on a copy, or carried out and undone. What training would add is for the
policy to learn. A preview gives `ACTION_FEATURES` for each action, which are appended to the
features of the network. Their meaning does not depend on the action, so a policy can judge all
actions by the same function.

Shapes: N networks, A actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from torch.optim import Optimizer

from dynopt_ray.arrays import BoolArray, FloatArray
from dynopt_ray.policies.actions import Action, ActionMask, ActionSet, Unchanging
from dynopt_ray.policies.costs import CHARGED_COSTS
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence
from dynopt_ray.policies.observation import LIMIT, EpisodeProgress, Observation
from dynopt_ray.structure import Cost, Graph
from dynopt_ray.tasks import Task
from dynopt_ray.training import undone

ACTION_FEATURES: tuple[str, ...] = (
    "legal",  # 1 if the action is legal; all others are 0 if not
    "whole",  # 1 if the action concerns the whole network
    "ends",  # 1 if the action ends the episode
    *(f"lowers_{kind}" for kind in ("flops", "nonzero")),  # 1 if the action can lower this cost
    *(f"cost_{kind}" for kind in CHARGED_COSTS),  # log2(cost after / cost before)
    "metric_change",  # of `Metrics.smooth` on validation data
    "loss_change",  # of log(1 + validation loss)
    "cost_change",  # of the cost that utility charges for, relative to the start
    "gain",  # of smooth utility; the last feature, which learned policies correct
)
"""The names of an action's features, in order."""


@dataclass(frozen=True, eq=False)
class Preview:
    """The performance and costs of N networks right after each of A actions, before any training.

    Actions that are illegal or change nothing leave the network as it is.

    Attributes:
        smooth: `Metrics.smooth` on validation data, (N, A).
        loss: validation loss, (N, A).
        costs: costs relative to the start, in the order of `CHARGED_COSTS`, (N, A, 4).
    """

    smooth: FloatArray
    loss: FloatArray
    costs: FloatArray

    @classmethod
    def unchanged(
        cls, smooth: FloatArray, loss: FloatArray, costs: FloatArray, num_actions: int
    ) -> "Preview":
        """Return the preview of actions that change nothing.

        Args:
            smooth: as above, (N,).
            loss: as above, (N,).
            costs: as above, (N, 4).
            num_actions: A.
        """
        return cls(
            *(np.repeat(values[:, None], num_actions, 1) for values in (smooth, loss, costs))
        )

    def put(self, networks: Sequence[int], new: "Preview") -> None:
        """Replace the rows of some networks."""
        for field in fields(self):
            getattr(self, field.name)[networks] = getattr(new, field.name)


def observe_actions(
    preview: Preview,
    networks: Descriptors,
    progress: EpisodeProgress,
    actions: ActionSet,
    action_mask: ActionMask,
) -> Observation:
    """Return the features of all actions, action after action.

    Returns:
        float32 (N, A * len(ACTION_FEATURES)), each in [-LIMIT, LIMIT].
    """
    shape = action_mask.shape
    now = progress.now
    costs, before = preview.costs, networks.costs[:, None]
    cost_change = ((costs - before) * progress.charges[:, None]).sum(2)
    metric_change = preview.smooth - now.smooth[:, None]
    facts = [
        [action.whole for action in actions],
        [action.ends for action in actions],
        [bool(action.lowers & {"flops"}) for action in actions],
        [bool(action.lowers & {"nonzero"}) for action in actions],
    ]
    columns = [
        np.ones(shape),
        *(np.broadcast_to(np.array(fact, dtype=np.float64), shape) for fact in facts),
        *np.moveaxis(np.log2(np.maximum(costs, 1e-9) / np.maximum(before, 1e-9)), 2, 0),
        metric_change,
        np.log1p(preview.loss) - np.log1p(now.loss)[:, None],
        cost_change,
        metric_change - progress.cost_weight[:, None] * cost_change,
    ]
    found = np.stack(columns, axis=2) * action_mask[:, :, None]
    finite = np.nan_to_num(found, nan=-LIMIT, posinf=LIMIT, neginf=-LIMIT)
    return np.asarray(np.clip(finite, -LIMIT, LIMIT).reshape(shape[0], -1), dtype=np.float32)


def changes(action: Action) -> bool:
    """Return whether an action can change a network at all, so that it needs a preview."""
    return not isinstance(action, Unchanging)


def preview_graph(
    graph: Graph,
    task: Task,
    *,
    network: Descriptors,
    actions: ActionSet,
    legal: BoolArray,
    evidence: GraphEvidence,
    start_cost: Cost,
    unchanged: Preview,
    optimizer: Optimizer | None = None,
) -> Preview:
    """Carry out each legal action on one real network, measure the result, and undo it.

    Args:
        graph: the network; it is the same afterwards, bit for bit.
        task: the task, on whose validation data the results are measured.
        network: the descriptors of the network.
        actions: the actions.
        legal: which of them are legal, (A,).
        evidence: what actions know.
        start_cost: the cost that costs are relative to.
        unchanged: the preview of actions that change nothing, of one row.
        optimizer: the optimizer over the network's parameters.
    """
    found = Preview(*(getattr(unchanged, field.name).copy() for field in fields(Preview)))
    for place, action in enumerate(actions):
        if not legal[place] or not changes(action):
            continue
        plan = action.plan(graph, network, evidence)
        with undone(graph):
            graph.apply(plan, optimizer=optimizer, compensate=evidence.inputs)
            metrics, cost = task.evaluate(graph.model), graph.cost()
        found.smooth[0, place], found.loss[0, place] = metrics.smooth, metrics.loss
        found.costs[0, place] = [cost.relative_to(start_cost, kind) for kind in CHARGED_COSTS]
    return found
