"""No built-in searcher tries a configuration twice while untried ones are left."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynopt_ray.cluster.searching.driver import search
from dynopt_ray.cluster.searching.result import SearchResult
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.errors import SearchError, SpecError

TREES: dict[str, tuple[Any, int | None]] = {
    "choices": ({"a": [0, 1, 3], "b": [0, 1]}, 6),
    "whole range": ({"n": {"low": 2, "high": 8}}, 7),
    "log": ({"n": {"low": 1, "high": 9, "log": True}, "b": [0, 1]}, 18),
    "nested": ({"a": ["x", {"n": {"low": 1, "high": 3}, "c": [0, 1]}], "f": 7}, 7),
    "deep": ({"a": [{"b": [{"c": [1, 2]}, 5]}, 9], "z": [0, 1]}, 8),
    "union": ([{"a": [1, 2]}, {"b": [{"c": [1, 2, 3]}, 0]}], 6),
    "equal options": ({"a": [1, 1]}, 2),
    "real range": ({"x": {"low": 0.0, "high": 1.0}}, None),
    "partly real": ({"a": [0, {"x": {"low": 0.0, "high": 1.0}}]}, None),
}
FINITE = {name: (tree, size) for name, (tree, size) in TREES.items() if size is not None}


def quality(config: Mapping[str, Any]) -> Iterator[Measurement]:
    """Prefers one configuration so clearly that a sampler keeps proposing it."""
    liking = -len(json.dumps(config, sort_keys=True)) - 3 * sum(map(ord, str(config))) % 11
    yield Measurement(step=1, accuracy=float(liking), cost=0.0, final=True)


def configurations(result: SearchResult) -> list[str]:
    columns = [name for name in result.trials.columns if name.startswith("config")]
    return [str(row.to_dict()) for _, row in result.trials[columns].iterrows()]


@pytest.mark.parametrize("name", TREES)
def test_the_size_of_a_space_counts_its_points(name: str) -> None:
    tree, size = TREES[name]
    space = Space.parse(tree)
    assert space.size == size
    if size is None:
        with pytest.raises(SpecError, match="infinitely many"):
            space.points()
        return
    points = list(space.points())
    assert len(points) == len({frozenset(point.items()) for point in points}) == size
    for point in points:
        assert space.used(space.point(point)) == point


@pytest.mark.parametrize("searcher", ["random", "optuna"])
@pytest.mark.parametrize("name", [name for name in FINITE if name != "equal options"])
def test_as_many_trials_as_configurations_try_each_once(name: str, searcher: str) -> None:
    tree, size = FINITE[name]
    result = search(quality, tree, num_trials=size, searcher=searcher, local=True, seed=1)
    assert len(set(configurations(result))) == size == len(result.trials)
    assert result.note == ""


@pytest.mark.parametrize("searcher", ["random", "optuna", "grid"])
def test_a_search_ends_early_and_says_so(searcher: str, caplog: pytest.LogCaptureFixture) -> None:
    result = search(quality, {"a": [0, 1, 3]}, num_trials=12, searcher=searcher, local=True)
    assert len(set(configurations(result))) == len(result.trials) == 3
    assert result.note == "the space has only 3 configurations, so 12 trials are not run"
    assert result.note in caplog.text


def test_a_sampler_that_keeps_to_one_option_is_led_away_from_it() -> None:
    """The finite part of a space is tried once, although nothing else is as good."""

    def trial(config: Mapping[str, Any]) -> Iterator[Measurement]:
        yield Measurement(step=1, accuracy=float(config["a"] == 0), cost=0.0, final=True)

    space = {"a": [0, {"x": {"low": 0.0, "high": 1.0}}]}
    result = search(trial, space, num_trials=40, searcher="optuna", local=True)
    assert len(set(configurations(result))) == len(result.trials) == 40
    assert (result.trials["accuracy"] == 1).sum() == 1


def test_large_spaces_are_not_listed() -> None:
    """Only a listing of 10^12 configurations would not return."""
    tree = {f"n{i}": {"low": 0, "high": 9_999} for i in range(3)}
    assert Space.parse(tree).size == 10**12
    result = search(quality, tree, num_trials=5, searcher="random", local=True)
    assert len(set(configurations(result))) == 5


@given(st.integers(0, 2**31 - 1), st.sampled_from(sorted(FINITE)))
@settings(max_examples=15, deadline=None)
def test_repeats_never_come_before_all_were_tried(seed: int, name: str) -> None:
    tree, size = FINITE[name]
    space = Space.parse(tree)
    seen: list[Mapping[str, Any]] = []

    def trial(config: Mapping[str, Any]) -> Iterator[Measurement]:
        seen.append(config)
        yield from quality(config)

    assert size is not None
    search(trial, space, num_trials=size, searcher="optuna", local=True, seed=seed)
    wanted = [space.decode(space.point(point)) for point in space.points()]
    assert sorted(map(str, seen)) == sorted(map(str, wanted))


def test_given_points_are_not_repeated() -> None:
    space = {"a": [0, 1, 2], "b": [0, {"n": [1, 2]}]}
    first = [{"a": 2}, {"a": 2, "b": 1}]
    result = search(quality, space, num_trials=9, searcher="optuna", local=True, first=first)
    assert len(set(configurations(result))) == 9
    again = [{"a": 0, "b": 0}, {"a": 0}]
    with pytest.raises(SpecError, match=r"first\[1\]: an earlier point stands for the same"):
        search(quality, space, num_trials=9, searcher="optuna", local=True, first=again)


def test_configurations_of_failed_trials_are_not_repeated() -> None:
    calls = []

    def trial(config: Mapping[str, Any]) -> Iterator[Measurement]:
        calls.append(config["a"])
        if config["a"] != 3:
            raise ValueError("told to")
        yield from quality(config)

    search(trial, {"a": [0, 1, 2, 3]}, num_trials=4, searcher="optuna", local=True)
    assert sorted(calls) == [0, 1, 2, 3]


@pytest.mark.ray
def test_trials_at_once_do_not_repeat_either() -> None:
    tree, size = TREES["choices"]
    result = search(quality, tree, num_trials=20, searcher="optuna", max_concurrent=2)
    assert len(set(configurations(result))) == len(result.trials) == size


def test_a_searcher_that_proposes_nothing_is_named() -> None:
    from ray.tune.search import Searcher

    class Nothing(Searcher):
        def suggest(self, trial_id: str) -> None:
            del trial_id

        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            raise AssertionError("there are no trials")

    with pytest.raises(SearchError, match="the searcher proposed no configuration"):
        search(quality, {"a": [0, 1]}, num_trials=3, searcher=Nothing(), local=True)
