"""Searches in this process find the optimum, stop bad trials, and survive failed ones."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.cluster.searching.result import pareto_front
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.errors import DivergedError, SearchError, SpecError, UnknownNameError

OPTIMUM = 0.3
STEPS = 9
SPACE = {"x": {"low": 0.0, "high": 1.0}}


def hill(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """A trial whose utility is largest at OPTIMUM. Trials are in their final order from step 1."""
    x = config["x"]
    for step in range(1, STEPS + 1):
        yield Measurement(
            step=step,
            accuracy=1 - (x - OPTIMUM) ** 2 - 0.5 / step,
            cost=0.5,
            final=step == STEPS,
            network=lambda: f"{x}".encode(),
        )


def fragile(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """A trial that diverges, raises or finishes, depending on its mode."""
    for step in range(1, 4):
        accuracy = math.nan if config["mode"] == "nan" and step == 2 else 0.5
        if config["mode"] == "raise":
            raise ValueError("told to")
        yield Measurement(step=step, accuracy=accuracy, cost=1.0, final=step == 3)


@pytest.mark.parametrize(("searcher", "distance"), [("random", 0.1), ("optuna", 0.05)])
def test_the_optimum_is_found(searcher: str, distance: float) -> None:
    result = search(hill, SPACE, num_trials=30, searcher=searcher, local=True)
    assert abs(result.best.config["x"] - OPTIMUM) < distance
    assert set(result.trials["status"]) == {"finished"}
    assert result.best.utility == result.trials["utility"].max()
    assert result.network == f"{result.best.config['x']}".encode()


@pytest.mark.parametrize("num_trials", [None, 2, 9])
def test_a_grid_tries_all_once_and_in_order(num_trials: int | None) -> None:
    result = search(hill, {"x": [0.9, 0.3, 0.5]}, num_trials=num_trials, searcher="grid",
                    local=True)  # fmt: skip
    assert result.trials["config.x"].tolist() == [0.9, 0.3, 0.5][:num_trials]
    assert result.best.config == {"x": OPTIMUM}


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_given_points_are_tried_first(searcher: str) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}, "kind": ["a", {"z": {"low": 1, "high": 9}}]}
    first = [{"x": 0.25, "kind": 1, "kind.1.z": 7}, {"x": 0.75}]
    result = search(hill, space, num_trials=4, searcher=searcher, local=True, first=first)
    assert result.trials["config.x"].tolist()[:2] == [0.25, 0.75]
    assert result.trials["config.kind.z"][0] == 7
    assert not set(result.trials["config.x"][2:]) & {0.25, 0.75}


@pytest.mark.parametrize(
    ("first", "searcher", "message"),
    [
        ([0.5], "random", "first[0]: [0.5] is not a point; give a mapping"),
        (
            {"y": 0.5},
            "random",
            "first[0]: 'y' is not a range or choice of the space",
        ),
        ({"x": 1.5}, "random", "first[0]: x: 1.5 is not a number in the range from 0.0 to 1.0"),
        ({"x": "a"}, "optuna", "first[0]: x: 'a' is not a number in the range from 0.0 to 1.0"),
        ({"x": 0.5}, "grid", "Grid cannot try given points first"),
    ],
)
def test_first_points_are_checked(first: Any, searcher: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        search(hill, SPACE, num_trials=2, searcher=searcher, local=True, first=[first])


def test_first_points_are_a_list_that_is_not_longer_than_the_search() -> None:
    with pytest.raises(SpecError, match=r"first is \{'x': 0.5\}; give a list"):
        search(hill, SPACE, num_trials=2, local=True, first={"x": 0.5})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="first has 2 points, but num_trials is 1"):
        search(hill, SPACE, num_trials=1, local=True, first=[{"x": 0.5}, {"x": 0.6}])


def test_only_a_grid_needs_no_number_of_trials() -> None:
    with pytest.raises(SpecError, match=r"^num_trials is missing; only the searcher 'grid'"):
        search(hill, SPACE, local=True)
    with pytest.raises(SpecError, match=r"^space.x: a grid cannot try all values of a range"):
        search(hill, SPACE, searcher="grid", local=True)


def test_optuna_learns_from_the_trials_before() -> None:
    result = search(hill, SPACE, num_trials=40, searcher="optuna", local=True)
    distance = (result.trials["config.x"] - OPTIMUM).abs()
    assert distance[20:].mean() < distance[:10].mean() / 2


def test_utility_charges_for_cost() -> None:
    def trial(config: Mapping[str, Any]) -> Iterator[Measurement]:
        yield Measurement(step=1, accuracy=config["x"], cost=config["x"] ** 2, final=True)

    result = search(
        trial, {"x": [0.1, 0.5, 0.9]}, num_trials=12, cost_weight=1.0, searcher="random", local=True
    )
    assert result.best.config == {"x": 0.5}
    assert result.best.utility == pytest.approx(0.5 - 0.25)
    # A larger x costs more and is more accurate, so all three are on the front, once each.
    assert result.pareto["accuracy"].tolist() == [0.1, 0.5, 0.9]


def test_asha_stops_bad_trials() -> None:
    result = search(hill, SPACE, num_trials=30, searcher="random", scheduler="asha",
                    num_reports=STEPS, local=True)  # fmt: skip
    trials = result.trials
    stopped = trials[trials["status"] == "stopped"]
    assert len(stopped) > len(trials) / 2
    assert (stopped["step"] < STEPS).all()
    finished = trials[trials["status"] == "finished"]
    away = (trials["config.x"] - OPTIMUM).abs()
    assert away[finished.index].mean() < away[stopped.index].mean()
    assert abs(result.best.config["x"] - OPTIMUM) < 0.1
    assert len(result.history) < len(trials) * STEPS


def test_no_trial_is_stopped_in_the_grace_period() -> None:
    result = search(hill, SPACE, num_trials=20, searcher="random", num_reports=STEPS, local=True,
                    scheduler={"name": "asha", "grace_reports": 4})  # fmt: skip
    assert result.trials["step"].min() >= 4


def test_a_failed_trial_does_not_affect_others() -> None:
    result = search(fragile, {"mode": ["fine", "nan", "raise"]}, num_trials=20, searcher="random",
                    scheduler="asha", num_reports=3, local=True)  # fmt: skip
    by_mode = {str(mode): rows for mode, rows in result.trials.groupby("config.mode")}
    assert set(by_mode["fine"]["status"]) <= {"finished", "stopped"}
    assert set(by_mode["nan"]["error"]) == {"DivergedError: the accuracy is nan at step 2"}
    assert set(by_mode["raise"]["error"]) == {"ValueError: told to"}
    assert set(by_mode["nan"]["step"]) == {1}
    assert result.best.config == {"mode": "fine"}


def test_a_search_without_a_finished_trial_says_why() -> None:
    with pytest.raises(SearchError) as caught:
        search(fragile, {"mode": ["nan", "nan"]}, num_trials=2, searcher="random", local=True)
    assert str(caught.value) == (
        "none of 2 trials finished, 2 failed. Trial 0 with {'mode': 'nan'}: DivergedError: the "
        "accuracy is nan at step 2"
    )


def test_the_same_seed_gives_the_same_search() -> None:
    def table(seed: int) -> pd.DataFrame:
        return search(hill, SPACE, num_trials=15, scheduler="asha", num_reports=STEPS, seed=seed,
                      searcher="optuna", local=True).trials  # fmt: skip

    pd.testing.assert_frame_equal(table(3), table(3), check_exact=True)
    assert not table(3)["config.x"].equals(table(4)["config.x"])


def test_trials_run_on_one_thread_and_the_number_of_threads_is_restored() -> None:
    seen = []

    def trial(config: Mapping[str, Any]) -> Iterator[Measurement]:
        seen.append(torch.get_num_threads())
        yield Measurement(step=1, accuracy=config["x"], cost=1.0, final=True)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    search(trial, {"x": [1, 2]}, num_trials=1, searcher="random", local=True)
    assert (seen, torch.get_num_threads()) == ([1], 2)
    torch.set_num_threads(before)


def test_every_configuration_is_checked_before_anything_starts() -> None:
    class Picky:
        def check(self, config: Mapping[str, Any]) -> None:
            if config["x"] > 2:
                raise SpecError(f"space.x: {config['x']} is too much")

        def __call__(self, config: Mapping[str, Any]) -> Iterator[Measurement]:
            raise AssertionError(f"must not run, with {config}")
            yield

    with pytest.raises(SpecError, match=r"^space\.x: 3 is too much$"):
        search(Picky(), {"x": [1, 2, 3]}, num_trials=1)


def test_errors_name_the_bad_argument() -> None:
    with pytest.raises(ValueError, match=r"^num_trials is 0; it must be at least 1$"):
        search(hill, SPACE, num_trials=0)
    with pytest.raises(ValueError, match=r"^cost_weight is -1; it must be finite and >= 0$"):
        search(hill, SPACE, num_trials=1, cost_weight=-1)
    with pytest.raises(ValueError, match=r"^cpus_per_trial is 0 and gpus_per_trial 0; "):
        search(hill, SPACE, num_trials=1, cpus_per_trial=0)
    with pytest.raises(UnknownNameError, match=r"^no searcher 'optun'\. Did you mean 'optuna'\?"):
        search(hill, SPACE, num_trials=1, searcher="optun")
    with pytest.raises(SpecError) as caught:
        search(hill, SPACE, num_trials=1, num_reports=5,
               scheduler={"name": "asha", "grace_reports": 6})  # fmt: skip
    assert str(caught.value) == (
        "'asha' refuses its arguments: asha: grace_reports is 6; it must be from 1 to the 5 "
        "reports of a trial"
    )


def test_measurements_must_be_finite() -> None:
    with pytest.raises(DivergedError, match=r"^the cost is inf at step 4$"):
        Measurement(step=4, accuracy=0.5, cost=math.inf).row(0.1)


def test_the_front_has_one_row_per_cost_and_none_of_equal_accuracy() -> None:
    points = pd.DataFrame(
        {"cost": [1.0, 1.0, 2.0, 2.0, 3.0], "accuracy": [0.5, 0.7, 0.7, 0.8, 0.8], "n": range(5)}
    )
    assert pareto_front(points)["n"].tolist() == [1, 3]


def test_optuna_draws_at_random_until_its_startup_is_over() -> None:
    def drawn(searcher: Any) -> list[float]:
        result = search(hill, SPACE, num_trials=12, searcher=searcher, local=True, seed=3)
        values: list[float] = result.trials["config.x"].tolist()
        return values

    random = drawn("random")
    assert drawn({"name": "optuna", "num_startup_trials": 12}) == random
    learned = drawn({"name": "optuna", "num_startup_trials": 4})
    assert learned[:4] == random[:4]
    assert learned[4:] != random[4:]


def test_every_point_is_matched_or_beaten_by_the_front() -> None:
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"cost": rng.random(200).round(2), "accuracy": rng.random(200).round(2)})
    front = pareto_front(points)
    for _, point in points.iterrows():
        better = (front["cost"] <= point["cost"]) & (front["accuracy"] >= point["accuracy"])
        assert better.any()
    assert front["cost"].is_monotonic_increasing
    assert (front["accuracy"].diff().dropna() > 0).all()


@pytest.mark.parametrize("cpus", [1, 2])
def test_trials_compute_with_as_many_threads_as_on_a_cluster(cpus: int) -> None:
    before = torch.get_num_threads()

    def trial(config: Any) -> dict[str, float]:
        return {"accuracy": config["a"], "threads": torch.get_num_threads()}

    torch.set_num_threads(3)
    try:
        found = search(trial, {"a": [1]}, searcher="grid", local=True, cpus_per_trial=cpus)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found.trials["threads"].tolist() == [cpus]
