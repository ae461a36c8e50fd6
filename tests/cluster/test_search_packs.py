"""Trials in packs: each has the figures that it has alone, and ends and fails alone."""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynopt_ray import population
from dynopt_ray.cluster import Measurement, PruneTrial, SearchResult, TrialLog, search
from dynopt_ray.cluster.pruning_trials import prune_pack
from dynopt_ray.cluster.searching import pack_size
from dynopt_ray.cluster.searching.pack_size import PackRates, pack_rates
from dynopt_ray.cluster.trials import Advance, TrialWorker, WorkerConfig
from dynopt_ray.cluster.trials.messages import StartTrial, TrialEnded, TrialFailed, TrialMeasured
from dynopt_ray.errors import SpecError
from dynopt_ray.journals import RunRecord, lines_at, read_journal
from dynopt_ray.tasks import load_task
from dynopt_ray.training import loaded_network
from tests.cluster.packed import SPACE, OfPoint, digits, trained
from tests.cluster.slots import TurnsPool, run, table
from tests.cluster.test_search_replay import files_in

NUM_TRIALS = 14


@pytest.fixture(scope="module")
def trial() -> PruneTrial:
    task = digits()
    # 33 steps in 4 parts: members whose parts are not equally long are in a pack together.
    return PruneTrial(task, trained(task), retrain_steps=33, num_reports=4, cost="nonzero")


def packed(trial: Any, pack: Any, space: Any = SPACE, **options: Any) -> SearchResult:
    given: dict[str, Any] = {"num_trials": NUM_TRIALS, "searcher": "random", "local": True}
    return search(trial, space, pack=pack, **{**given, **options})


@pytest.fixture(scope="module")
def alone(trial: PruneTrial) -> SearchResult:
    return packed(trial, 1)


def assert_same(one: SearchResult, other: SearchResult) -> None:
    for ours, theirs in ((one.trials, other.trials), (one.history, other.history)):
        pd.testing.assert_frame_equal(by_trial(ours), by_trial(theirs), check_exact=True)
    assert one.network == other.network


def by_trial(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["trial", "step"], ignore_index=True)


@pytest.mark.parametrize("pack", [3, 5, NUM_TRIALS])
def test_figures_are_those_of_the_trial_alone(
    pack: int, trial: PruneTrial, alone: SearchResult
) -> None:
    """Whoever the neighbours are, and whenever a free place is filled."""
    result = packed(trial, pack)
    assert len({*alone.trials["params"]}) > 3  # of many widths
    assert set(result.trials["status"]) == {"finished"}
    assert_same(result, alone)


@pytest.mark.parametrize("optimizer", ["sgd", {"name": "sgd", "momentum": 0.9}, "adamw"])
def test_other_optimizers_in_packs(optimizer: Any, trial: PruneTrial) -> None:
    trial = PruneTrial(
        trial.task, trial.network, retrain_steps=20, num_reports=2, optimizer=optimizer
    )
    assert_same(packed(trial, 1, num_trials=6), packed(trial, 4, num_trials=6))


def test_a_pack_learns_what_trials_without_a_pack_learn(
    trial: PruneTrial, alone: SearchResult
) -> None:
    result = packed(trial, None)
    for name in ("cost", "params", "nonzero", "lr", "step"):
        assert (result.trials[name] == alone.trials[name]).all()
    for name in ("loss", "validation_loss"):
        assert (result.trials[name] - alone.trials[name]).abs().max() < 1e-3
    assert (result.trials["accuracy"] - alone.trials["accuracy"]).abs().max() < 0.01


def test_the_network_of_a_member_has_its_figures(alone: SearchResult, trial: PruneTrial) -> None:
    assert alone.network is not None
    network = loaded_network(trial.task, alone.network)
    assert trial.task.evaluate(network).metric == alone.best.accuracy
    assert sum(p.numel() for p in network.parameters()) == alone.trials["params"][alone.best.trial]


def test_a_member_that_diverges_fails_alone(trial: PruneTrial) -> None:
    trial = PruneTrial(trial.task, trial.network, retrain_steps=20, num_reports=2, optimizer="sgd")
    space = {"remove_fraction": 0.3, "lr": [0.01, 1e30, 0.02, 0.05]}
    options: dict[str, Any] = {"searcher": "grid", "num_trials": None, "max_concurrent": 1}
    result = packed(trial, 4, space, **options)
    assert result.trials["status"].tolist() == ["finished", "failed", "finished", "finished"]
    assert result.trials["error"][1].startswith("DivergedError: after 0 of 20 steps: the loss is ")
    assert "at step 2 of 10" in result.trials["error"][1]
    assert_same(result, packed(trial, 1, space, **options))


def test_an_error_in_one_member_leaves_the_others_untouched(
    trial: PruneTrial, alone: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a batch of products for which there is no memory: then members go one by one."""
    real = population.train_together

    def limited(members: Any, *arguments: Any, **options: Any) -> Any:
        if len(members) > 1:
            raise MemoryError("no room for so many")
        return real(members, *arguments, **options)

    monkeypatch.setattr(prune_pack, "train_together", limited)
    assert_same(packed(trial, 5), alone)


def test_a_pack_that_breaks_fails_its_members(
    trial: PruneTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, numbers: Any) -> Any:
        raise RuntimeError(f"no room for {len(numbers)}")

    monkeypatch.setattr(prune_pack.PrunePack, "advance", broken)
    worker = TrialWorker(OfPoint(trial), WorkerConfig(cost_weight=0.1, together=True))
    events = worker.advance([StartTrial(number, {"x": 0.5, "y": 0.1}) for number in (3, 5)])
    assert events == [TrialFailed(number, "RuntimeError: no room for 2") for number in (3, 5)]


def test_members_share_the_time_of_their_pack(trial: PruneTrial) -> None:
    worker = TrialWorker(OfPoint(trial), WorkerConfig(cost_weight=0.1, together=True))
    begun = time.monotonic()
    events = worker.advance([StartTrial(number, {"x": 0.5, "y": 0.1}) for number in range(4)])
    taken = time.monotonic() - begun
    shares = [event.elapsed_s for event in events if isinstance(event, TrialMeasured)]
    assert len(shares) == 4
    assert 0.7 * taken < sum(shares) < taken
    limited = WorkerConfig(cost_weight=0.1, together=True, time_limit_s=1e-6)
    (event,) = TrialWorker(OfPoint(trial), limited).advance([StartTrial(0, {"x": 0.5, "y": 0.1})])
    assert event == TrialEnded(0, "the trial ran for longer than its limit of 1e-06 s")


def test_schedulers_stop_members_one_by_one(trial: PruneTrial, alone: SearchResult) -> None:
    result = packed(trial, 5, scheduler="asha", num_reports=4)
    assert set(result.trials["status"]) == {"finished", "stopped"}
    columns = [*alone.history.columns]
    merged = result.history.merge(alone.history[columns], on=columns)
    assert len(merged) == len(result.history) < len(alone.history)


def test_free_places_are_filled_at_once(trial: PruneTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = prune_pack.PrunePack.advance

    def counted(pack: Any, numbers: Any) -> Any:
        sizes.append(len(numbers))
        return real(pack, numbers)

    monkeypatch.setattr(prune_pack.PrunePack, "advance", counted)
    result = packed(trial, 4, scheduler="asha", num_reports=4)
    assert sum(sizes) == len(result.history)
    full = sizes.index(next(size for size in sizes if size < 4))
    assert full > NUM_TRIALS // 4  # stopped members made room in the middle of the others' trials
    assert sizes[full:] == sorted(sizes[full:], reverse=True)
    assert len(sizes) - full < 4  # the last ones end without new neighbours


@pytest.mark.parametrize("scheduler", ["none", "asha", "pbt"])
def test_killed_packs_and_drivers_change_no_figure(
    scheduler: str, trial: PruneTrial, tmp_path: Path
) -> None:
    """Every member goes on from its own state; PBT copies members to others."""
    small = PruneTrial(trial.task, trial.network, retrain_steps=12, num_reports=4)
    options: dict[str, Any] = {"scheduler": scheduler, "in_order": True, "pack": 2}
    undisturbed = run(
        files_in(tmp_path / "a"),
        pool=partial(TurnsPool, num_slots=3, seed=0, trial=OfPoint(small)),
        **options,
    ).records
    assert scheduler != "pbt" or _copied(undisturbed)
    records: list[RunRecord] = []
    for seed in range(60):
        records = run(
            files_in(tmp_path / "b"),
            records=records,
            pool=partial(
                TurnsPool,
                num_slots=3,
                seed=seed,
                loss=0.15,
                answers_left=6 + seed % 9,
                trial=OfPoint(small),
            ),
            **options,
        ).records
        if sum(record.kind == "ended" for record in records) == 12:
            break
    assert sum(record.kind == "continued" for record in records) >= 2
    assert sum(record.kind == "lost" for record in records) >= 4
    pd.testing.assert_frame_equal(table(records), table(undisturbed), check_exact=True)
    for number in range(12):
        networks = [files_in(tmp_path / one).network(number) for one in "ab"]
        assert networks[0] == networks[1]


def _copied(records: list[RunRecord]) -> bool:
    """Return whether a trial was started again with another configuration."""
    configs: dict[int, list[Any]] = {}
    for record in records:
        if record.kind == "started":
            configs.setdefault(record["trial"], []).append(record["config"])
    return any(config != given[0] for given in configs.values() for config in given)


def test_functions_take_turns_in_a_pack() -> None:
    running: list[float] = []

    def takes_turns(config: Mapping[str, Any]) -> Any:
        running.append(config["x"])
        for step in range(1, 4):
            yield Measurement(step, config["x"], len({*running}), final=step == 3)

    result = search(
        takes_turns, {"x": [1, 2, 3, 4, 5, 6]}, searcher="grid", pack=3, local=True, cost_weight=0
    )
    # At its last step, a trial of the first three has seen the others of its pack begin.
    assert result.trials["cost"].tolist() == [3, 3, 3, 6, 6, 6]


def test_packs_of_several_families_if_the_size_is_measured(
    trial: PruneTrial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pack_size, "_BUDGET_S", 0.0)
    space = {
        "remove_fraction": {"low": 0.1, "high": 0.9},
        "optimizer": ["sgd", "adam"],
        "batch_size": [16, 32],
    }
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dynopt_ray.search")
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    try:
        result = packed(trial, "auto", space, num_trials=8, storage=tmp_path)
    finally:
        logger.removeHandler(handler)
    assert result.note.startswith("packs of ")
    assert messages == [f"search: {result.note}"]
    assert_same(result, packed(trial, 1, space, num_trials=8))
    # Taken up again, it keeps the size.
    (record,) = (r for r in read_journal(lines_at(str(tmp_path))) if r.kind == "pack")
    assert packed(trial, "auto", space, num_trials=8, storage=tmp_path).note == record["note"]


class Waiting:
    """Trials of which any number take 20 ms for a step, up to a limit; beyond, twice as many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.steps: dict[int, int] = {}
        self.most = 0

    def __call__(self, config: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def family(self, config: Mapping[str, Any]) -> str:
        return str(config)

    def new_pack(self) -> "Waiting":
        return self

    def start(self, number: int, config: Mapping[str, Any], state: Any) -> None:
        del config, state
        self.steps[number] = 0

    def advance(self, numbers: Sequence[int]) -> Mapping[int, Advance]:
        self.most = max(self.most, len(numbers))
        time.sleep(0.02 if len(numbers) <= self.limit else 0.02 * len(numbers) / self.limit)
        found = {}
        for number in numbers:
            self.steps[number] += 1
            step = self.steps[number]
            found[number] = Advance(Measurement(step, 1.0, 0.0, final=step == 5), 0.02)
        return found

    def close(self, number: int) -> None:
        del self.steps[number]


@pytest.mark.parametrize(("limit", "best", "most"), [(1, 1, 4), (16, 16, 64), (1000, 100, 100)])
def test_larger_packs_are_tried_as_long_as_they_are_faster(
    limit: int, best: int, most: int
) -> None:
    trial = Waiting(limit)
    rates = pack_rates(trial, [{}], most=100, budget_s=60)
    assert (rates.best, trial.most) == (best, most)
    assert 10 < rates.steps_per_s[1] <= 50


def test_no_pack_is_tried_that_takes_too_long_to_start() -> None:
    class Slow(Waiting):
        def start(self, number: int, config: Mapping[str, Any], state: Any) -> None:
            time.sleep(0.05)
            super().start(number, config, state)

    trial = Slow(1000)
    pack_rates(trial, [{}], most=100, budget_s=1.5)
    assert trial.most == 16  # 64 would take another 2.4 s


def test_the_smallest_pack_that_is_fast_enough_is_best() -> None:
    rates = PackRates({1: 10.0, 4: 39.0, 16: 91.0, 64: 100.0})
    assert rates.best == 16
    assert str(rates) == (
        "packs of 16 trials (steps per second of packs of 1: 10, 4: 39, 16: 91, 64: 100)"
    )


def test_auto_says_why_there_are_no_packs() -> None:
    task = load_task({"name": "digits-cnn", "channels": [2]})
    cnn = PruneTrial(task, trained(task), retrain_steps=2, num_reports=1)
    space = {"remove_fraction": [0.2, 0.4]}
    options: dict[str, Any] = {"searcher": "grid", "num_trials": None}
    result = packed(cnn, "auto", space, **options)
    assert result.note.startswith("no packs: pack: a Sequential of this structure cannot")
    assert_same(result, packed(cnn, None, space, **options))
    result = packed(lambda config: {"accuracy": config["x"]}, "auto", {"x": [1, 2]}, **options)
    assert result.note.startswith("no packs: its trials are functions, which take turns; give")


def refused(trial: Any, message: str, tmp_path: Path, **options: Any) -> None:
    """Check that a search is refused before anything is written or run."""
    storage = tmp_path / "run"
    begun: list[TrialLog] = []
    with pytest.raises(SpecError, match=message):
        packed(trial, options.pop("pack", 4), storage=storage, on_end=begun.append, **options)
    assert not storage.exists()
    assert not begun


@pytest.mark.parametrize("pack", [0, -1, True, 2.5, "many"])
def test_wrong_sizes_are_refused(pack: Any, trial: PruneTrial, tmp_path: Path) -> None:
    refused(
        trial,
        f"^pack is {pack!r}; give a number of trials, at least 1, or 'auto'$",
        tmp_path,
        pack=pack,
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optimizer": ["sgd", "adam"]}, "pack is 4, but the space has several families .*'adam'"),
        ({"batch_size": [16, 32]}, "several families of trials, .*'batch_size': 32"),
        ({"optimizer": ["rmsprop", "adam"]}, "space.optimizer: RMSprop cannot train a pack; use"),
        ({"lr": [{"name": "plateau", "initial": 0.1}]}, "space.lr: .*plateau.* adapts to one"),
    ],
)
def test_spaces_that_do_not_fit_a_pack_are_refused(
    space: Any, message: str, trial: PruneTrial, tmp_path: Path
) -> None:
    space = {"remove_fraction": {"low": 0.1, "high": 0.9}, **space}
    refused(trial, message, tmp_path, space=space)


def test_networks_that_cannot_be_in_a_pack_are_refused(tmp_path: Path) -> None:
    task = load_task({"name": "digits-cnn", "channels": [2]})
    cnn = PruneTrial(task, b"", retrain_steps=2)
    refused(cnn, "a Sequential of this structure cannot be trained in a pack", tmp_path)


def test_a_measured_size_would_not_repeat(trial: PruneTrial, tmp_path: Path) -> None:
    refused(trial, "pack is 'auto', which depends on", tmp_path, pack="auto", order="drawn")
