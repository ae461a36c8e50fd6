"""from_config: schedules from plain data, and what it says about bad data."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dynopt_ray import plugins
from dynopt_ray.errors import PluginError, SpecError, UnknownNameError
from dynopt_ray.schedules import Schedule, constant, cosine, from_config, sequence, warmup


def test_nested_schedules() -> None:
    config = {
        "name": "sequence",
        "milestones": [5],
        "schedules": [
            {"name": "constant", "value": 1.0},
            {
                "name": "warmup",
                "num_steps": 2,
                "schedule": {"name": "cosine", "initial": 0.1, "num_steps": 9},
            },
        ],
    }
    expected = sequence(
        [constant(1.0), warmup(cosine(0.1, num_steps=9), num_steps=2)], milestones=[5]
    )
    assert from_config(config) == expected


def test_a_schedule_of_the_users_own_by_path() -> None:
    config = {"name": "dynopt_ray.schedules:cosine", "initial": 0.1, "num_steps": 9}
    assert from_config(config) == cosine(0.1, num_steps=9)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"name": "cosin"}, UnknownNameError, "no schedule 'cosin'. Did you mean 'cosine'"),
        ({"initial": 0.1}, SpecError, "has no 'name'.*known: article_step, constant"),
        ({"name": 3}, SpecError, "has no 'name'"),
        ({"name": "constant", "valeu": 1}, SpecError, "no argument 'valeu'. Did you mean 'value'"),
        ({"name": "step", "initial": 1}, SpecError, "'step' needs gamma, period_steps"),
        ({"name": "constant", "value": "x"}, SpecError, "'constant' refuses.*a number, not 'x'"),
        ({"name": "exponential", "initial": 1, "gamma": 2}, SpecError, "gamma is 2"),
        ({"name": "math:nothing"}, PluginError, "'math' has no attribute 'nothing'"),
        (0.1, SpecError, r"not 0\.1; for a fixed value write .*'constant', 'value': 0\.1"),
        ({"name": "builtins:dict"}, PluginError, "'builtins:dict' is not a factory that can be"),
        ({"name": "math:pi"}, PluginError, "which is not a factory"),
        (
            {"name": "warmup", "num_steps": 1, "schedule": {"name": "lineal"}},
            UnknownNameError,
            "Did you mean 'linear'",
        ),
    ],
)
def test_bad_configs(config: Mapping[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_config(config)


def halving(**options: float) -> Schedule:
    return lambda step: options["start"] / 2**step


@pytest.mark.usefixtures("registered")
def test_a_factory_that_takes_any_argument() -> None:
    assert from_config({"name": "halving", "start": 8.0})(2) == 2.0


@pytest.mark.usefixtures("registered")
def test_a_factory_that_makes_something_else() -> None:
    with pytest.raises(PluginError, match="made 'text', which is not a function of the step"):
        from_config({"name": "textual"})


@pytest.fixture
def registered() -> Iterator[None]:
    plugins.register("schedules", "halving", halving)
    plugins.register("schedules", "textual", lambda: "text")
    yield
    plugins.unregister("schedules", "halving")
    plugins.unregister("schedules", "textual")
