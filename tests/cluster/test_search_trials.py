"""The forms in which a trial may give its measurements, and the errors for others."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.cluster.trials.trial import measured
from dynopt_ray.errors import SearchError


def yielding(config: Any) -> Iterator[Any]:
    yield {"step": 5, "accuracy": 0.5, "cost": 0.2, "loss": 0.1}
    yield {"step": 9, "accuracy": config["a"], "cost": 0.2, "loss": 0.2, "final": True}


FORMS: dict[str, Callable[[Any], Any]] = {
    "mapping": lambda c: {"step": 9, "accuracy": c["a"], "cost": 0.2, "loss": 0.2},
    "measurement": lambda c: Measurement(9, c["a"], 0.2, details={"loss": 0.2}),
    "list": lambda c: [
        Measurement(5, 0.5, 0.2, details={"loss": 0.1}),
        {"step": 9, "accuracy": c["a"], "cost": 0.2, "loss": 0.2},
    ],
    "generator of mappings": yielding,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_returned_measurement_is_final(form: str) -> None:
    result = search(FORMS[form], {"a": [0.3, 0.9]}, num_trials=2, searcher="grid", local=True)
    trials = result.trials.drop(columns=["trial", "error"])
    assert trials.to_dict("records") == [
        {
            **{"status": "finished", "config.a": a, "step": 9, "accuracy": a, "cost": 0.2},
            **{"utility": pytest.approx(a - 0.02), "loss": 0.2},
        }
        for a in (0.3, 0.9)
    ]
    assert len(result.history) == (2 if form in ("mapping", "measurement") else 4)


def test_an_accuracy_alone_is_enough() -> None:
    result = search(lambda c: {"accuracy": c["a"]}, {"a": [1, 2]}, num_trials=2, local=True)
    assert (result.best.accuracy, result.best.cost) == (2, 0)


def test_a_mapping_may_bring_a_network() -> None:
    def trial(config: Any) -> Any:
        return {"accuracy": config["a"], "network": lambda: b"weights"}

    assert search(trial, {"a": [1, 2]}, num_trials=2, local=True).network == b"weights"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the trial returned None; yield measurements, or return one or a mapping"),
        (0.9, "the trial returned 0.9"),
        ("0.9", "the trial returned '0.9'"),
        ([0.9], "the trial gave 0.9 as a measurement"),
        ([], "the trial gave no measurement"),
        ({}, "a measurement with the keys none, but without 'accuracy'"),
        ({"acuracy": 0.9}, r"without 'accuracy'.* Did you mean 'acuracy'\?"),
        ({"accuracy": "high"}, "the trial gave accuracy = 'high'; it must be a number"),
        ({"accuracy": 0.9, "loss": [1]}, r"the trial gave loss = \[1\]; it must be a number"),
        ({"accuracy": 0.9, "utility": 0.7}, "the trial gave utility, which the search computes"),
    ],
)
def test_what_is_no_measurement_is_named(given: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        list(measured(lambda _: given, {}))
    with pytest.raises(SearchError, match=f"none of 2 trials finished, 2 failed.*{message}"):
        search(lambda _: given, {"a": [1, 2]}, num_trials=2, local=True)


def endless(config: Any) -> Iterator[Measurement]:
    yield Measurement(1, config["a"], 0.0)


def half_endless(config: Any) -> Iterator[Measurement]:
    yield Measurement(1, config["a"], 0.0, final=config["a"] == 1)


NEVER = "the trial ended without a final measurement; yield the last one with final=True"


@pytest.mark.parametrize("local", [True, pytest.param(False, marks=pytest.mark.ray)])
def test_a_trial_that_never_says_final_is_told_so(local: bool) -> None:
    with pytest.raises(SearchError, match=f"none of 2 trials finished. Trial 0 .*: {NEVER}"):
        search(endless, {"a": [1, 2]}, num_trials=2, searcher="grid", local=local)
    result = search(half_endless, {"a": [1, 2]}, num_trials=2, searcher="grid", local=local)
    assert result.trials["status"].tolist() == ["finished", "stopped"]
    assert result.trials["error"].tolist() == ["", NEVER]
    assert len(result.history) == 2


def test_zero_trials_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="max_concurrent is 0; it must be at least 1"):
        search(endless, {"a": [1]}, num_trials=1, max_concurrent=0)
