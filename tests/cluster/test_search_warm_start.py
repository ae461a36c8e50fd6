"""Searches that learn from the trials of earlier ones."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynopt_ray.cluster import Space, search
from dynopt_ray.errors import DynoptError, SpecError
from dynopt_ray.journals import RunJournal
from dynopt_ray.journals.lines import lines_at

SPACE = {"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b", {"name": "c", "y": [1, 2]}]}


def trial(config: Any) -> dict[str, float]:
    """The best is kind b and x = 0.7."""
    return {"accuracy": (config["kind"] == "b") - (config["x"] - 0.7) ** 2, "cost": 0.1}


def searched(place: Path | None = None, num_trials: int = 12, **arguments: Any) -> pd.DataFrame:
    space = arguments.pop("space", SPACE)
    return search(
        trial, space, num_trials=num_trials, storage=place, local=True, **arguments
    ).trials


def test_the_first_draws_are_near_the_best_earlier_trials(tmp_path: Path) -> None:
    searched(tmp_path / "earlier", num_trials=60)
    cold = searched(seed=5)
    warm = searched(seed=5, warm_start=[tmp_path / "earlier"])
    assert warm["accuracy"].mean() > cold["accuracy"].mean() + 0.3
    assert (warm["config.kind"] == "b").mean() > 0.7


def test_a_search_that_goes_on_needs_the_earlier_run_no_more(tmp_path: Path) -> None:
    searched(tmp_path / "earlier", num_trials=20)
    arguments: dict[str, Any] = {"num_trials": 15, "warm_start": [tmp_path / "earlier"]}
    undisturbed = searched(tmp_path / "undisturbed", **arguments)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b'"known"' in lines[1]
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    shutil.rmtree(tmp_path / "earlier")
    pd.testing.assert_frame_equal(
        searched(tmp_path / "cut", **arguments), undisturbed, check_exact=True
    )


def test_only_trials_that_are_in_the_space_count(tmp_path: Path) -> None:
    searched(tmp_path / "earlier", num_trials=40)
    space = {"x": {"low": 0.5, "high": 2.0}, "kind": ["b", "a"]}
    searched(tmp_path / "later", space=space, warm_start=[tmp_path / "earlier"])
    with RunJournal(lines_at(str(tmp_path / "later"))) as later:
        points = [record["point"] for record in later.records if record.kind == "known"]
    assert points
    assert all(0.5 <= point["x"] <= 1 for point in points)
    kinds = {space["kind"][point["kind"]] for point in points}  # type: ignore[index]
    assert kinds == {"a", "b"}


@pytest.mark.parametrize(
    ("place", "arguments", "message"),
    [
        ("missing", {}, "missing has no journal of a search"),
        ("empty", {}, "empty is a run, but has no search"),
        ("earlier", {"space": {"z": [1, 2]}, "num_trials": 2}, "no finished trial whose settings"),
        ("earlier", {"searcher": "grid", "space": {"x": [0.1]}}, "Grid does not learn"),
        ("earlier", {"objective": ["accuracy", "flops"]}, "no earlier trial measured all of acc"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    place: str, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    searched(tmp_path / "earlier", num_trials=3)
    (tmp_path / "empty").mkdir()
    with RunJournal(lines_at(str(tmp_path / "empty"))) as empty:
        empty.append("part", name="train")
    with pytest.raises(DynoptError, match=message):
        searched(tmp_path / "new", warm_start=[tmp_path / place], **arguments)
    # The place can still be used.
    if "searcher" not in arguments and "objective" not in arguments:
        assert len(searched(tmp_path / "new", num_trials=2)) == 2


SPACES = st.sampled_from(
    [
        SPACE,
        {"a": {"b": [1, {"c": [3, {"low": 1, "high": 4}]}]}, "l": [[1, 2], [3]], "f": "fixed"},
        [{"x": [1, 2]}, {"x": [2, 3], "y": {"low": 1e-3, "high": 1.0, "log": True}}],
    ]
)


@given(SPACES, st.randoms())
def test_every_configuration_has_its_point(plain: Any, random: Any) -> None:
    space = Space.parse(plain)
    configs = list(space.probes())
    config = random.choice(configs)
    point = space.point_of(config)
    assert point is not None
    assert space.decode(point) == config
    assert point.keys() == space.dimensions.keys()
    assert space.point_of({**config, "more": 1}) is None
    assert space.point_of({}) is None


def test_numbers_outside_a_range_have_no_point() -> None:
    space = Space.parse({"n": {"low": 1, "high": 4}})
    assert [space.point_of({"n": n}) for n in (0, 1, 2.5, 4, True, "1")] == [
        None,
        {"n": 1},
        None,
        {"n": 4},
        None,
        None,
    ]


def test_points_that_are_refused_raise_the_library_s_own_error() -> None:
    with pytest.raises(SpecError):
        searched(warm_start=["nowhere"])
