"""The reconstruction criterion on inputs that it cannot work with."""

from typing import Any

import pytest
import torch
from torch import nn

from dynopt_ray.criteria import reconstruction_errors, unit_scores, weight_scores
from dynopt_ray.errors import DivergedError
from dynopt_ray.structure import trace


@pytest.mark.parametrize("score", [unit_scores, weight_scores])
def test_inputs_whose_moments_cannot_be_inverted_are_refused(
    score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction_errors, "RIDGE", -2.0)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(20, 4)
    graph = trace(model, x)
    with pytest.raises(DivergedError, match="cannot be inverted"):
        score(
            graph, "reconstruction", [(x, torch.arange(20) % 3)], loss=nn.functional.cross_entropy
        )
