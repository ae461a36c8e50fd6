"""What the faces promise by their signatures: defaults, and results that nobody can change."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from river.drift import ADWIN
from torch import nn
from torch.optim import SGD

from dynopt_ray import criteria, online, population, schedules, structure, training

# A default that changes changes what the code of users does: it belongs into CHANGELOG.md too.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "structure": {
        "Grow": {"init": "fresh", "exact": True},
        "Remove": {"exact": True},
        "fit_latency": {"num_points": 10, "shares": (1 / 8, 1.0), "seed": 0},
        "measure": {"latency": False, "memory": False},
        "trace": {"fixed": (), "heads": "heads"},
    },
    "criteria": {
        "activation": {"measure": "energy"},
        "batchnorm_scale": {"aggregate": "sum"},
        "comparable": {"per": "mean"},
        "gradient": {"order": 2, "aggregate": "sum"},
        "magnitude": {"order": 2, "aggregate": "sum"},
        "random": {"seed": 0},
        "reconstruction": {"weighted": True},
        "taylor": {"squared": False, "aggregate": "sum"},
    },
    "schedules": {
        "cosine": {"final": 0.0},
        "polynomial": {"power": 1.0, "final": 0.0},
        "warmup": {"initial": 0.0},
    },
    "training": {
        "Budget": {"is_absolute": False},
        "Cocob": {"lr": 1.0, "alpha": 100.0},
        "Distillation": {"weight": 1.0, "temperature": 4.0},
        "Greedy": {"share": 0.1, "num_steps": 4, "num_checked": 4},
        "Hypergradient": {"multiplicative": False},
        "Plateau": {
            "factor": 0.5,
            "patience": 5,
            "min_gain": 1e-3,
            "min_lr": 0.0,
            "backtrack": True,
        },
        "PopulationBasedRate": {"share": 0.2, "factors": (0.8, 1.2), "seed": 0},
        "Random": {"share": 0.1},
        "Regrowth": {"share": 0.1},
        "Retraining": {"num_checks": 1, "restart": True},
        "find_rate": {"lowest": 1e-6, "highest": 10.0, "num_steps": 100, "seed": 0},
        "grow": {"criterion": "even", "init": "fresh", "rounds": 4, "seed": 0},
        "prune": {
            "criterion": "magnitude",
            "granularity": "unit",
            "scope": "global",
            "rounds": 1,
            "compensate": True,
            "seed": 0,
        },
        "sensitivity": {
            "fractions": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            "criterion": "magnitude",
            "granularity": "unit",
            "compensate": True,
            "seed": 0,
        },
        "stalled": {"min_gain": 0.01, "max_trainings": 10},
    },
    "online": {
        "ArrayStream": {"drifts": (), "seed": 0},
        "Drift": {"kind": "labels", "width": 0, "seed": 0},
        "DurableLearner": {"snapshot_every": 1_000},
        "Guard": {"window": 64, "tolerance": 0.05, "max_halvings": 5},
        "OnlineLearner": {"loss": "cross_entropy", "reactions": (), "seed": 0},
        "Quarantine": {"keep": 20},
        "RaiseRate": {"factor": 4.0, "half_life": 50},
        "Replay": {"window": 64, "passes": 2, "batch_size": 16},
        "Replayed": {"max_log": 10_000, "finds_falls": True},
        "Widen": {"fraction": 0.25, "most": 4.0},
        "evaluate": {"window": 1_000},
    },
}

LAYER, OTHER = nn.Linear(1, 1), nn.Linear(1, 1)

# Arguments at the very ends of their ranges, all of them legal.
EDGES: list[Callable[[], object]] = [
    lambda: structure.Grow("0", units=1),
    lambda: structure.Shrink("0", remove=[]),
    lambda: schedules.exponential(0.0, gamma=1.0),
    lambda: schedules.step(0.0, gamma=1.0, period_steps=1),
    lambda: schedules.polynomial(0.0, num_steps=1),
    lambda: schedules.cosine(0.0, num_steps=1),
    lambda: schedules.linear(0.0, num_steps=1, final=0.0),
    lambda: schedules.warmup(schedules.constant(0.0), num_steps=1),
    lambda: schedules.rewind(schedules.constant(0.0), to_step=0),
    lambda: schedules.sequence([schedules.constant(0.0)] * 3, milestones=[1, 2]),
    lambda: schedules.article_step(0.0, num_steps=1, period_steps=2),
    lambda: criteria.random(seed=0),
    lambda: training.Retraining(1),
    lambda: training.Retraining(3, num_checks=3, patience=2),
    lambda: training.Retraining(2, num_checks=2, patience=1),
    lambda: training.Greedy(num_steps=1, num_checked=1),
    lambda: training.stalled(min_gain=0.0, max_trainings=1),
    lambda: training.PopulationBasedRate(
        [LAYER, OTHER], [SGD(LAYER.parameters()), SGD(OTHER.parameters())], share=0.5
    ),
    lambda: training.Cocob([torch.zeros(1)], lr=0.0),
    lambda: training.Plateau(LAYER, SGD(LAYER.parameters()), patience=1, min_gain=0.0, min_lr=0.0),
    lambda: training.Hypergradient(SGD(LAYER.parameters()), hyper_lr=1e-30, min_lr=0.0).detach(),
    lambda: online.Guard(window=1, tolerance=0.0, max_halvings=0),
    lambda: online.RaiseRate(half_life=1),
    lambda: online.Replay(window=1, passes=1, batch_size=1),
    lambda: online.Replayed(ADWIN, max_log=2),
    lambda: online.Drift(at=0, width=0),
    lambda: online.OnlineLearner(LAYER, SGD(LAYER.parameters()), lr=0.0),
    lambda: population.Population(nn.Sequential(LAYER, nn.ReLU(), nn.Linear(1, 1)), 1),
]

# Sums that grow, and a receipt, which can be undone.
CHANGEABLE = {"Moments", "PaddedMember", "Receipt"}
PACKAGES = ["structure", "criteria", "schedules", "tasks", "training", "population", "online"]


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in DEFAULTS for name in DEFAULTS[package]]
)
def test_defaults_do_not_change_unnoticed(package: str, name: str) -> None:
    face = importlib.import_module(f"dynopt_ray.{package}")
    parameters = inspect.signature(getattr(face, name)).parameters
    found = {parameter: parameters[parameter].default for parameter in DEFAULTS[package][name]}
    assert found == DEFAULTS[package][name]


@pytest.mark.parametrize("make", EDGES)
def test_the_ends_of_ranges_are_legal(make: Callable[[], object]) -> None:
    make()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_dataclasses_are_frozen(package: str) -> None:
    face = importlib.import_module(f"dynopt_ray.{package}")
    kinds: list[Any] = [getattr(face, name) for name in face.__all__ if name not in CHANGEABLE]
    classes: list[Any] = [
        kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    assert [kind.__name__ for kind in classes if not kind.__dataclass_params__.frozen] == []
