"""Every generic test runs over all registered criteria; the table adds arguments."""

import doctest
import importlib
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray import plugins
from dynopt_ray.criteria import (
    Criterion,
    Evidence,
    activation,
    gradient,
    magnitude,
    random,
    reconstruction,
    taylor,
    unit_scores,
)
from dynopt_ray.errors import DivergedError, PluginError, SpecError, UnknownNameError
from dynopt_ray.structure import Graph, trace
from dynopt_ray.testing import check_criterion

MEMBERS: dict[str, list[Callable[[], Criterion]]] = {
    "activation": [activation, lambda: activation(measure="nonzero")],
    "batchnorm_scale": [],  # the kit's network has groups without normalisation
    "gradient": [gradient, lambda: gradient(order=1), lambda: gradient(aggregate="max")],
    "magnitude": [
        magnitude,
        lambda: magnitude(order=1),
        lambda: magnitude(aggregate="mean"),
    ],
    "random": [random, lambda: random(seed=9)],
    "reconstruction": [reconstruction, lambda: reconstruction(weighted=False)],
    "taylor": [taylor, lambda: taylor(squared=True), lambda: taylor(aggregate="max")],
}
UNITS_ONLY = {"activation", "batchnorm_scale", "fpgm", "reconstruction"}
CASES = [
    pytest.param(make, ["unit"] if name in UNITS_ONLY else ["unit", "weight"], id=f"{name}-{index}")
    for name in plugins.names("criteria")
    for index, make in enumerate(MEMBERS.get(name, [plugins.load("criteria", name)]))
]


def graph() -> Graph:
    layers = [nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)]
    return trace(nn.Sequential(*layers), torch.zeros(2, 2))


@pytest.mark.parametrize(("make", "granularities"), CASES)
def test_members_pass_the_kit(
    make: Callable[[], Criterion], granularities: list[Literal["unit", "weight"]]
) -> None:
    check_criterion(make, granularities=granularities)


@pytest.mark.parametrize("make", [case.values[0] for case in CASES])
def test_members_are_values(make: Callable[[], Criterion]) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())


@pytest.mark.parametrize("name", [*plugins.names("criteria")])
def test_members_are_found_by_name(name: str) -> None:
    data = [(torch.ones(4, 2), torch.zeros(4, 1))]
    scores = unit_scores(graph(), name, data, loss=nn.functional.mse_loss)
    assert scores["0"].shape == (3,)


@pytest.mark.parametrize("name", ["", ".ranking", ".score"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dynopt_ray.criteria{name}"))
    assert results.attempted
    assert not results.failed


class Broken:
    """A criterion for units that gives whatever it is told."""

    def __init__(self, scores: Callable[[Evidence], dict[str, Tensor]]) -> None:
        self._scores = scores

    def score_units(self, evidence: Evidence) -> dict[str, Tensor]:
        return self._scores(evidence)

    def score_weights(self, evidence: Evidence) -> dict[str, Tensor]:
        raise TypeError(f"only for units, not for {list(evidence.weights)}")


def drawn(evidence: Evidence) -> dict[str, Tensor]:
    return {group.name: torch.rand(group.width) for group in evidence.graph}


def training(evidence: Evidence) -> dict[str, Tensor]:
    next(evidence.graph.model.parameters()).data.add_(1)
    return magnitude().score_units(evidence)


def constant(evidence: Evidence) -> dict[str, Tensor]:
    return {group.name: torch.ones(group.width) for group in evidence.graph}


def batch_sums(evidence: Evidence) -> dict[str, Tensor]:
    total = sum(
        float(x.square().mean()) for x, _ in evidence.batches or () if isinstance(x, Tensor)
    )
    return {n: s * (1 + total) for n, s in magnitude().score_units(evidence).items()}


def evaluating(evidence: Evidence) -> dict[str, Tensor]:
    evidence.graph.model.eval()
    return magnitude().score_units(evidence)


def backward(evidence: Evidence) -> dict[str, Tensor]:
    for parameter in evidence.graph.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return magnitude().score_units(evidence)


def overwriting(evidence: Evidence) -> dict[str, Tensor]:
    for _, targets in evidence.batches or ():
        targets.add_(1)
    return magnitude().score_units(evidence)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (training, "changes the network's weights"),
        (constant, "ranks nothing"),
        (batch_sums, "average over samples"),
        (evaluating, "in eval mode"),
        (backward, "leaves gradients in the parameters"),
        (overwriting, "writes to the data"),
        (drawn, "draws from torch's global generator"),
    ],
)
def test_broken_criteria_fail_the_kit(
    scores: Callable[[Evidence], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_criterion(lambda: Broken(scores), granularities=["unit"])


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda _: {}, PluginError, "returns nothing for '0'"),
        (lambda _: {"0": torch.ones(2)}, PluginError, r"returns shape \(2,\) for '0', not \(3,\)"),
        (lambda _: {"0": -torch.ones(3)}, PluginError, "negative scores for '0'"),
        (
            lambda _: {"0": torch.full((3,), torch.nan)},
            PluginError,
            r"criterion .*Broken.* returns nan .* '0' at \[0\].* weights are finite",
        ),
        (lambda _: {"0": torch.full((3,), torch.inf)}, DivergedError, "returns inf .* overflow"),
    ],
)
def test_wrong_scores_are_refused(score: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unit_scores(graph(), Broken(score))


def test_a_network_that_is_not_finite_is_named_instead_of_the_criterion() -> None:
    broken = graph()
    nn.init.constant_(broken.model.get_parameter("0.bias"), torch.nan)
    with pytest.raises(DivergedError, match=r"nan for unit .*: parameter '0\.bias' is not finite"):
        unit_scores(broken, "magnitude")


def test_unknown_names_and_arguments_are_refused_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"no criterion 'tayler'\. Did you mean 'taylor'"):
        unit_scores(graph(), "tayler")
    with pytest.raises(SpecError, match=r"has no argument 'ordr'\. Did you mean 'order'"):
        unit_scores(graph(), {"name": "magnitude", "ordr": 1})
    with pytest.raises(SpecError, match="order is 3; it must be 1 or 2"):
        unit_scores(graph(), {"name": "magnitude", "order": 3})
    with pytest.raises(SpecError, match="weighted is 'no'; pass True or False"):
        unit_scores(graph(), {"name": "reconstruction", "weighted": "no"})
    with pytest.raises(SpecError, match="seed is -1"):
        unit_scores(graph(), {"name": "random", "seed": -1})
    with pytest.raises(PluginError, match="lacks score_units or score_weights"):
        unit_scores(graph(), object())  # type: ignore[arg-type]
