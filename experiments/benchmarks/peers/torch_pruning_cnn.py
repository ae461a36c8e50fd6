"""Cut the Fashion-MNIST CNN with Torch-Pruning: `WEIGHTS.npz SHARE SEED`, prints [cut, retrained].

Every group loses the same share of its channels, as its authors' examples do, ranked by the L2
norm over the group; of its criteria that need no extra training this one did best here.
"""

import json
import sys

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from dynopt_ray.structure import measure
from dynopt_ray.tasks import Task, load_task
from experiments.benchmarks.cnn import cut_and_retrained


def main() -> None:
    """Prune to a share of the FLOPs and retrain."""
    path, share, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    task = load_task("fashion-mnist-cnn")
    model = least_pruned(task, path, share)
    print(json.dumps(cut_and_retrained(task, model, seed)))


def least_pruned(task: Task, path: str, share: float) -> nn.Module:
    """The network at the smallest pruning ratio that reaches the share, within 2 %."""
    example = task.example_inputs()
    for ratio in np.arange(0.4, 0.9, 0.005):
        model = task.new_model(seed=0)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(path).items()})
        before = measure(model, example).flops
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=float(ratio),
            ignored_layers=[model[-1]],
        )
        pruner.step()
        reached = measure(model, example).flops / before
        if reached <= share * 1.02:
            print(f"pruning ratio {ratio:.3f} leaves {reached:.4f} of the FLOPs")
            return model
    raise ValueError(f"no ratio reaches {share}")


if __name__ == "__main__":
    main()
