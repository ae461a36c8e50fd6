"""Plugins from names and mappings."""

import doctest
from typing import Any

import pytest

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.plugins import build


@pytest.mark.parametrize("config", ["step", {"name": "step"}])
def test_a_name_is_a_mapping_without_arguments(config: Any) -> None:
    made = build("schedules", config, initial=1.0, gamma=0.5, period_steps=2)
    assert [made(step) for step in range(4)] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (3, SpecError, "a schedule is given by name or as a mapping with a 'name', not as 3"),
        ({"value": 1}, SpecError, r"\{'value': 1\} has no 'name'"),
        ("constnt", UnknownNameError, "Did you mean 'constant'"),
        (
            {"name": "constant", "value": 1},
            SpecError,
            "'constant': 'value' is given twice: 1 and 2",
        ),
    ],
)
def test_what_cannot_be_built(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build("schedules", config, value=2)


def test_the_examples_run() -> None:
    assert doctest.testmod(plugins).failed == 0
