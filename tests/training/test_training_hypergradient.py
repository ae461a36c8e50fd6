"""`Hypergradient` keeps the direction of each parameter apart from those of others."""

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.training import Hypergradient


def test_hypergradient_pairs_directions_with_their_own_parameters() -> None:
    """A parameter that joins the first group shifts all that come after it."""
    torch.manual_seed(0)
    a, b, c = (nn.Parameter(torch.randn(3)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    hyper = Hypergradient(optimizer, hyper_lr=0.01)
    first, second = torch.randn(2, 3), torch.randn(3, 3)
    a.grad, b.grad = first[0].clone(), first[1].clone()
    optimizer.step()
    optimizer.param_groups[0]["params"].append(c)
    a.grad, b.grad, c.grad = second[0].clone(), second[1].clone(), second[2].clone()
    optimizer.step()
    assert hyper.lr == pytest.approx(0.1 + 0.01 * float((first * second[:2]).sum()), rel=1e-5)


def test_hypergradient_refuses_the_state_of_other_parameters() -> None:
    def made(num_parameters: int) -> tuple[Optimizer, Hypergradient]:
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(num_parameters)]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        return optimizer, Hypergradient(optimizer, hyper_lr=0.01)

    optimizer, hyper = made(3)
    optimizer.step()
    with pytest.raises(CheckpointError, match=r"directions of 3 parameters, but .* has 2"):
        made(2)[1].load_state_dict(hyper.state_dict())
    made(3)[1].load_state_dict(hyper.state_dict())
    made(2)[1].load_state_dict({"directions": []})
