"""A search that died continues as if nothing had happened: board, searcher, scheduler, trials."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from dynopt_ray.cluster.trials import KeptNetworks, TrialFiles, loop, replay
from dynopt_ray.errors import RunError
from dynopt_ray.journals import LocalStore, RunRecord
from tests.cluster.slots import Climb, TurnsPool, board_of, run, table

SEARCHERS = ["random", "optuna"]
SCHEDULERS = ["none", "asha", "hyperband", "median", "pbt", "pb2"]


def files_in(path: Path) -> TrialFiles:
    return TrialFiles(LocalStore(path))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_what_was_recorded_is_decided_again(searcher: str, scheduler: str, tmp_path: Path) -> None:
    """A board that is told the first part decides about the rest as it did then."""
    whole = run(
        files_in(tmp_path),
        searcher=searcher,
        scheduler=scheduler,
        pool=lambda config: TurnsPool(config, num_slots=3, seed=1),
    ).records
    assert {"finished"} <= {r["status"] for r in whole if r.kind == "ended"}
    board, _ = board_of(files_in(tmp_path), searcher, scheduler, 12)
    assert replay(whole, board, KeptNetworks(forget=lambda _: None)) == []
    assert board.num_left == 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_search_that_dies_again_and_again_ends_like_one_that_did_not(
    searcher: str, scheduler: str, tmp_path: Path
) -> None:
    undisturbed = run(
        files_in(tmp_path / "a"),
        searcher=searcher,
        scheduler=scheduler,
        pool=lambda config: TurnsPool(config, num_slots=1, seed=0),
    ).records
    records: list[RunRecord] = []
    for seed in range(100):
        records = run(
            files_in(tmp_path / "b"),
            searcher=searcher,
            scheduler=scheduler,
            records=records,
            pool=partial(TurnsPool, num_slots=1, seed=seed, loss=0.1, answers_left=5 + seed % 4),
        ).records
        if sum(r.kind == "ended" for r in records) == 12:
            break
    assert sum(r.kind == "continued" for r in records) >= 3
    pd.testing.assert_frame_equal(table(records), table(undisturbed), check_exact=True)
    networks = [files_in(tmp_path / one).network for one in "ab"]
    for number in range(12):
        assert networks[0](number) == networks[1](number)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_decisions_in_the_order_of_drawing_repeat(scheduler: str, tmp_path: Path) -> None:
    tables = [
        table(
            run(
                files_in(tmp_path / str(seed)),
                searcher="optuna",
                scheduler=scheduler,
                in_order=True,
                pool=partial(TurnsPool, num_slots=3, seed=seed),
            ).records
        )
        for seed in (1, 2)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


def test_trials_have_their_turns_in_the_order_of_drawing(tmp_path: Path) -> None:
    records = run(
        files_in(tmp_path),
        num_trials=6,
        in_order=True,
        pool=lambda config: TurnsPool(config, num_slots=3, seed=5, loss=0.2),
    ).records
    measured = [record["trial"] for record in records if record.kind == "measured"]
    assert measured == [0, 1, 2] * 4 + [3, 4, 5] * 4


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_decisions_in_order_do_not_depend_on_who_dies_when(scheduler: str, tmp_path: Path) -> None:
    """Several slots, some of which are lost, and a driver that dies again and again."""
    undisturbed = run(
        files_in(tmp_path / "a"),
        searcher="optuna",
        scheduler=scheduler,
        in_order=True,
        pool=lambda config: TurnsPool(config, num_slots=3, seed=0),
    ).records
    records: list[RunRecord] = []
    for seed in range(100):
        records = run(
            files_in(tmp_path / "b"),
            searcher="optuna",
            scheduler=scheduler,
            in_order=True,
            records=records,
            pool=partial(TurnsPool, num_slots=3, seed=seed, loss=0.1, answers_left=5 + seed % 9),
        ).records
        if sum(r.kind == "ended" for r in records) == 12:
            break
    assert sum(r.kind == "continued" for r in records) >= 3
    pd.testing.assert_frame_equal(table(records), table(undisturbed), check_exact=True)
    networks = [files_in(tmp_path / one).network for one in "ab"]
    for number in range(12):
        assert networks[0](number) == networks[1](number)


def test_fewer_slots_than_expected_decide_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_PATIENCE_S", 0.0)
    tables = [
        table(
            run(
                files_in(tmp_path / str(num_slots)),
                searcher="optuna",
                scheduler="hyperband",
                in_order=True,
                pool=partial(TurnsPool, num_slots=num_slots, seed=1),
            ).records
        )
        for num_slots in (3, 2, 1)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    pd.testing.assert_frame_equal(tables[0], tables[2], check_exact=True)


def test_little_is_computed_twice(tmp_path: Path) -> None:
    trial = Climb()
    run(
        files_in(tmp_path),
        pool=lambda config: TurnsPool(config, num_slots=3, seed=5, loss=0.2, trial=trial),
    )
    # A lost process repeats at most the step whose measurement did not arrive.
    assert len(set(trial.steps)) == 12 * 4
    assert len(trial.steps) < 1.5 * 12 * 4


def test_a_trial_whose_process_dies_too_often_fails_alone(tmp_path: Path) -> None:
    records = run(
        files_in(tmp_path),
        num_trials=5,
        max_failures=1,
        pool=lambda config: TurnsPool(config, num_slots=2, seed=5, loss=0.2),
    ).records
    trials = table(records)
    failed = trials[trials["status"] == "failed"]
    assert 0 < len(failed) < 5
    assert set(failed["error"]) == {"its process died 2 times; lastly: killed"}
    assert set(trials["status"]) == {"failed", "finished"}


def test_a_searcher_that_decides_otherwise_is_refused(tmp_path: Path) -> None:
    records = run(
        files_in(tmp_path), pool=lambda config: TurnsPool(config, num_slots=1, seed=0)
    ).records
    board, _ = board_of(files_in(tmp_path), "optuna", None, 12)
    message = "for trial 10, its searcher or scheduler now decides otherwise than before .drawn"
    with pytest.raises(RunError, match=message):
        replay(records, board, KeptNetworks(forget=lambda _: None))
