"""Cut a network with Torch-Pruning, and print one JSON object.

Arguments: `CASE WEIGHTS.npz CUT SEED`. Every group loses the same share of its channels, as in the
examples of Torch-Pruning's authors. Channels are ranked by their L2 norm over the group, which did
best here among the criteria that need no extra training.
"""

import json
import sys

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from dynopt_ray.structure import measure
from dynopt_ray.tasks import Task
from experiments.benchmarks.cases import CASES, accuracy, epoch, loaded, train
from experiments.benchmarks.networks import Attention
from experiments.benchmarks.timing import latency_ms

_REACHED = 1.02


def main() -> None:
    """Prune to a share of the FLOPs, and retrain for one epoch."""
    name, path, label, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    task, cut = CASES[name].make_task(), CASES[name].cuts[label]
    model = least_pruned(task, path, cut.share)
    found = {"cut": accuracy(task, model), "latency_ms": latency_ms(model, task)}
    lr = cut.peer_lr or cut.retrain_lr
    train(task, model, num_steps=epoch(task), lr=lr, seed=seed)
    print(json.dumps({**found, "retrained": accuracy(task, model)}))


def least_pruned(task: Task, path: str, share: float) -> nn.Module:
    """Return the network at the smallest pruning ratio that reaches the share within 2 %."""
    example = task.example_inputs()
    for ratio in np.arange(0.2, 0.95, 0.005):
        model = loaded(task, path)
        before = measure(model, example).flops
        prune(model, example, float(ratio))
        reached = measure(model, example).flops / before
        if reached <= share * _REACHED:
            print(f"pruning ratio {ratio:.3f} leaves {reached:.4f} of the FLOPs")
            return model
    raise ValueError(f"no pruning ratio below 0.95 leaves only {share} of the FLOPs")


def prune(model: nn.Module, example: torch.Tensor, ratio: float) -> None:
    """Remove the same share of the channels of every group."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    own = [(p, p.ndim - 1) for p in model._parameters.values() if p is not None]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[last],
        num_heads={module.qkv: module.num_heads for module in attentions},
        unwrapped_parameters=own,
    )
    pruner.step()
    for module in attentions:
        module.num_heads = pruner.num_heads[module.qkv]


if __name__ == "__main__":
    main()
