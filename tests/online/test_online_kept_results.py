"""Without periodic snapshots, events that come again are answered with their results."""

import shutil
from pathlib import Path

import pytest
import torch

from dynopt_ray.online import DurableLearner, LearnResult
from dynopt_ray.online.durable.durable_learner import EventResult
from tests.online.durable_learners import build, events


def plain(result: EventResult) -> object:
    """A result in a form that can be compared."""
    if not isinstance(result, LearnResult):
        return type(result)
    fields = {**vars(result), "output": result.output.tolist()}
    return {name: repr(value) for name, value in fields.items()}


def learned(directory: Path, first: int, last: int) -> list[object]:
    """Open a learner, send events of the stream, and return their results."""
    with DurableLearner(build, directory, snapshot_every=None) as durable:
        results = durable.learn(first, events(30)[first - 1 : last]).results
    return [plain(result) for result in results]


def test_a_restored_learner_answers_events_since_its_snapshot(tmp_path: Path) -> None:
    undisturbed = learned(tmp_path / "undisturbed", 1, 30)
    with DurableLearner(build, tmp_path / "d", snapshot_every=None) as durable:
        durable.learn(1, events(30)[:10])
        durable.snapshot()
        durable.learn(11, events(30)[10:20])
        assert durable.learn(10, events(30)[9:10]).results == (None,)
        again = durable.learn(12, events(30)[11:20]).results
    assert [plain(result) for result in again] == undisturbed[11:20]
    # Ten events have left their results only with the learner that is gone.
    assert learned(tmp_path / "d", 11, 30) == undisturbed[10:]


def test_results_are_not_kept_if_snapshots_are_periodic(tmp_path: Path) -> None:
    with DurableLearner(build, tmp_path / "d", snapshot_every=100) as durable:
        durable.learn(1, events(30)[:10])
        assert durable.learn(1, events(30)[:10]).results == (None,) * 10
        assert durable._results == {}


def test_there_is_no_snapshot_before_one_is_asked_for(tmp_path: Path) -> None:
    with DurableLearner(build, tmp_path / "d", snapshot_every=None) as durable:
        for number, event in enumerate(events(2_000), start=1):
            durable.learn(number, [event])
        assert not (tmp_path / "d" / "snapshot.safetensors").exists()
        durable.snapshot()
    assert (tmp_path / "d" / "snapshot.safetensors").exists()


@pytest.mark.parametrize("first", [1, 11, 16])
def test_a_copy_of_the_files_gives_the_same_results(first: int, tmp_path: Path) -> None:
    """What is on disk now is what a killed process leaves behind."""
    undisturbed = learned(tmp_path / "undisturbed", 1, 20)
    with DurableLearner(build, tmp_path / "d", snapshot_every=None) as durable:
        durable.learn(1, events(30)[:15])
        shutil.copytree(tmp_path / "d", tmp_path / "copy")
    torch.manual_seed(first)  # other draws before must not matter
    assert learned(tmp_path / "copy", first, 20) == undisturbed[first - 1 :]
