"""Unit errors of stacked networks, against the criterion for real networks."""

import pytest
import torch
import torch.nn.functional as F

from dynopt_ray.criteria import reconstruction, unit_scores
from dynopt_ray.population import Population, unit_errors
from dynopt_ray.structure import trace
from dynopt_ray.tasks.builtin.models import mlp


@pytest.mark.parametrize("most_steps", [1, 3, 64])
def test_units_are_scored_as_those_of_real_networks(most_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    torch.manual_seed(0)
    models = [mlp(6, hidden, 3) for hidden in ([12, 8], [5, 8], [12, 1])]
    with torch.no_grad():  # a unit that is dead, and two that are equal
        models[0].get_parameter("0.bias")[3] = -100
        models[0].get_parameter("0.weight")[5] = models[0].get_parameter("0.weight")[6]
        models[0].get_parameter("0.bias")[5] = models[0].get_parameter("0.bias")[6]
    population = Population(models[0], 3)
    for member, model in enumerate(models):
        population.load(member, model)
    found = unit_errors(population, x, y, most_steps=most_steps)
    criterion = reconstruction(most_steps=most_steps)
    for member, model in enumerate(models):
        wanted = unit_scores(trace(model, x[:1]), criterion, [(x, y)], loss=F.cross_entropy)
        for score, one in zip(found, wanted.values(), strict=True):
            torch.testing.assert_close(score[member, : len(one)], one, rtol=1e-3, atol=1e-7)
            assert bool(score[member, len(one) :].isinf().all())
