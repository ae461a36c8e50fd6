"""A network whose best smaller one is known, and a criterion that says what it is told."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynopt_ray.criteria import Evidence

USEFUL = (1, 2, 5, 6)
USELESS = (0, 3, 4, 7)


@dataclass(frozen=True)
class Fixed:
    """A criterion that gives the scores it was made of, to the units that are left."""

    units: dict[str, Tensor]
    weights: dict[str, Tensor]

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        return {group.name: self.units[group.name][: group.width] for group in evidence.graph}

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        return {name: self.weights[name] for name in evidence.weights}


def planted() -> nn.Module:
    """Eight hidden units, of which the `USELESS` do next to nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(0.3)
        for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
            parameter = model.get_parameter(name)
            parameter.index_copy_(
                dim,
                torch.tensor(USELESS),
                parameter.index_select(dim, torch.tensor(USELESS)) * 1e-3,
            )
    return model
