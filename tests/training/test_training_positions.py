"""Pruning with short inputs leaves tables for longer ones whole."""

import torch
from torch import Tensor, nn

from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, prune


class _Classifier(nn.Module):
    """Tokens with a table of 64 positions, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(64, 8))
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.first(x) + self.positions[: x.shape[1]]).relu()
        out: Tensor = self.third(self.second(h).relu().mean(1))
        return out


def test_a_budget_of_parameters_never_cuts_positions() -> None:
    x = torch.randn(120, 6, 3, generator=torch.Generator().manual_seed(0))
    data = (x, (x.sum((1, 2)) > 0).long())
    task = Task.from_arrays(
        model=_Classifier, train=data, validation=data, test=data, loss="cross_entropy"
    )
    model = task.new_model(seed=0)
    assert isinstance(model, _Classifier)
    prune(model, task, target=Budget(params=0.6))
    assert model.positions.shape[0] == 64
    assert sum(p.numel() for p in model.parameters()) <= 0.6 * 834
    assert model(torch.randn(2, 60, 3)).shape == (2, 2)
