"""One table of members: every generic test runs over all of them."""

import doctest
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dynopt_ray import plugins
from dynopt_ray.schedules import (
    Schedule,
    article_step,
    constant,
    cosine,
    exponential,
    from_config,
    linear,
    polynomial,
    rewind,
    sequence,
    step,
    warmup,
)
from dynopt_ray.testing import check_schedule


@dataclass(frozen=True)
class Member:
    make: Callable[[], Schedule]
    low: float
    high: float


MEMBERS: dict[str, list[Member]] = {
    "article_step": [Member(lambda: article_step(0.1, num_steps=1000, period_steps=300), 0, 0.1)],
    "constant": [Member(lambda: constant(0.3), 0.3, 0.3), Member(lambda: constant(-2), -2, -2)],
    "cosine": [
        Member(lambda: cosine(0.1, num_steps=500), 0, 0.1),
        Member(lambda: cosine(0.1, num_steps=7, final=0.9), 0.1, 0.9),
    ],
    "exponential": [Member(lambda: exponential(2.0, gamma=0.97), 0, 2)],
    "linear": [Member(lambda: linear(1.0, num_steps=300, final=0.05), 0.05, 1)],
    "polynomial": [
        Member(lambda: polynomial(0.1, num_steps=100, power=0.5), 0, 0.1),
        Member(lambda: polynomial(0.0, num_steps=100, power=3, final=0.9), 0, 0.9),
    ],
    "sequence": [
        Member(lambda: sequence([constant(0.5), cosine(0.2, num_steps=9)], milestones=[3]), 0, 0.5),
        Member(lambda: sequence((constant(1),), milestones=()), 1, 1),
    ],
    "rewind": [Member(lambda: rewind(cosine(0.1, num_steps=90), to_step=45), 0, 0.05)],
    "step": [Member(lambda: step(0.8, gamma=0.5, period_steps=10), 0, 0.8)],
    "warmup": [Member(lambda: warmup(cosine(0.1, num_steps=90), num_steps=10), 0, 0.1)],
}
CASES = [
    pytest.param(member, id=f"{name}-{index}")
    for name, members in MEMBERS.items()
    for index, member in enumerate(members)
]


def test_every_registered_schedule_is_in_the_table() -> None:
    assert sorted(MEMBERS) == plugins.names("schedules")


@pytest.mark.parametrize("member", CASES)
def test_members_pass_the_kit(member: Member) -> None:
    check_schedule(member.make, low=member.low, high=member.high)


@pytest.mark.parametrize("member", CASES)
def test_members_are_values(member: Member) -> None:
    schedule = member.make()
    assert schedule == member.make()
    assert hash(schedule) == hash(member.make())
    assert schedule != constant(math.pi)


@pytest.mark.parametrize("member", CASES)
def test_the_repr_is_the_call_that_makes_it(member: Member) -> None:
    schedule = member.make()
    factories = {name: plugins.load("schedules", name) for name in MEMBERS}
    assert eval(repr(schedule), factories) == schedule


@pytest.mark.parametrize("name", ["article", "compose", "config", "decay", "torch_scheduler"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dynopt_ray.schedules.{name}"))
    assert results.attempted
    assert not results.failed


def test_the_package_example_runs() -> None:
    assert not doctest.testmod(importlib.import_module("dynopt_ray.schedules")).failed


def test_from_config_makes_every_member_with_one_formula() -> None:
    made = from_config({"name": "step", "initial": 0.8, "gamma": 0.5, "period_steps": 10})
    assert made == step(0.8, gamma=0.5, period_steps=10)
