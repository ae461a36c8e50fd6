import random
from collections.abc import Callable, Iterator

import pytest
import torch

from dynopt_ray import plugins
from dynopt_ray.errors import CheckpointError
from dynopt_ray.online.drift.detectors import (
    Detector,
    Replayed,
    build_detector,
    hddm_a,
    hddm_w,
    kswin,
    page_hinkley,
)

NAMES = [p.name for p in plugins.plugins("detectors") if p.source == "built in"]


def errors(*phases: tuple[int, float], seed: int = 1) -> Iterator[float]:
    rng = random.Random(seed)
    for num_events, rate in phases:
        for _ in range(num_events):
            yield float(rng.random() < rate)


def built(name: str) -> Detector:
    detector = build_detector(name)
    assert detector is not None
    return detector


@pytest.mark.parametrize("name", NAMES)
def test_a_jump_of_the_error_is_found_soon_and_once_or_twice(name: str) -> None:
    detector = built(name)
    drifts = [i for i, e in enumerate(errors((1000, 0.1), (300, 0.8))) if detector.update(e)]
    after = [place for place in drifts if place >= 1000]
    assert after
    assert after[0] < 1080
    assert len(after) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_steady_or_falling_error_is_no_drift(name: str) -> None:
    detector = built(name)
    falling = errors((60, 0.9), (100, 0.5), (200, 0.2), (1000, 0.05))
    drifts = [detector.update(error) for error in falling]
    assert not any(drifts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("saved_at", [17, 1005])
def test_a_restored_detector_goes_on_as_if_nothing_had_been(name: str, saved_at: int) -> None:
    stream = list(errors((1000, 0.1), (100, 0.6), (300, 0.1), (100, 0.7)))
    original = built(name)
    for error in stream[:saved_at]:
        original.update(error)
    restored = built(name)
    for error in stream[:50]:
        restored.update(error)
    restored.load_state_dict(original.state_dict())
    wanted = [original.update(error) for error in stream[saved_at:]]
    assert any(wanted)
    assert [restored.update(error) for error in stream[saved_at:]] == wanted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["rise", "fall"])
def test_a_detector_restored_right_after_a_change_goes_on_alike(name: str, kind: str) -> None:
    before, after = (0.1, 0.8) if kind == "rise" else (0.8, 0.1)
    stream = [*errors((800, before), (300, after)), *errors((300, 0.1), (300, 0.9), seed=2)]
    original, changed_at = built(name), None
    for place, error in enumerate(stream[:1100]):
        original.update(error)
        if place > 0 and not len(original.state_dict()["errors"]):
            changed_at = place
            break
    if changed_at is None:  # it watches for a rise alone
        assert kind == "fall"
        return
    restored = built(name)
    for error in stream[:50]:
        restored.update(error)
    restored.load_state_dict(original.state_dict())
    wanted = [original.update(error) for error in stream[changed_at + 1 :]]
    assert any(wanted)
    assert [restored.update(error) for error in stream[changed_at + 1 :]] == wanted
    assert len(original.state_dict()["errors"]) == len(restored.state_dict()["errors"])


@pytest.mark.parametrize("name", NAMES)
def test_a_jump_is_found_also_where_the_error_has_fallen_before(name: str) -> None:
    detector = built(name)
    stream = errors((300, 0.8), (300, 0.1), (300, 0.9), seed=2)
    drifts = [place for place, error in enumerate(stream) if detector.update(error)]
    assert drifts
    assert 600 <= drifts[0] < 720


@pytest.mark.parametrize(
    "make",
    [
        lambda: hddm_a(two_sided_test=True),
        lambda: hddm_w(two_sided_test=True),
        lambda: page_hinkley(mode="both"),
        lambda: page_hinkley(mode="down"),
    ],
)
def test_a_fall_that_is_found_on_request_is_no_drift(make: Callable[[], Detector]) -> None:
    detector, sizes = make(), []
    for error in errors((300, 0.9), (300, 0.05)):
        assert not detector.update(error)
        sizes.append(len(detector.state_dict()["errors"]))
    assert 0 in sizes


class Every:
    """A detector of changes that finds one at every so many values."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0
        self.drift_detected = False

    def update(self, _x: float, /) -> None:
        self.seen += 1
        self.drift_detected = self.seen == self.number


@pytest.mark.parametrize(
    ("values", "risen"),
    [
        # The latest half of four against the others.
        ([0.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 1.0, 0.0], False),
        ([0.0, 1.0, 0.0, 1.0], False),
        # Of a hundred the latest 32 against the 68 before them.
        ([*[0.5] * 68, *[0.6] * 32], True),
        ([*[0.5] * 68, *[0.4] * 32], False),
        ([*[0.4] * 67, 2.0, *[0.4] * 31, 0.5], False),
        ([*[0.9] * 50, *[0.0] * 18, *[0.5] * 32], False),
        ([*[0.5] * 68, 0.7, *[0.495] * 31], True),
        ([*[0.5] * 67, 0.9, *[0.501] * 32], False),
        # There is nothing before the first.
        ([0.0], True),
    ],
)
def test_a_change_counts_as_drift_where_the_latest_errors_are_larger(
    values: list[float], risen: bool
) -> None:
    detector = Replayed(lambda: Every(len(values)))
    found = [detector.update(value) for value in values]
    assert found == [False] * (len(values) - 1) + [risen]
    # Whichever way it went, the log starts anew.
    assert not len(detector.state_dict()["errors"])


def test_a_detector_starts_anew_at_a_change_even_if_it_does_not_do_so_itself() -> None:
    class Twice(Every):
        def update(self, _x: float, /) -> None:
            super().update(_x)
            self.drift_detected = self.seen in (3, 5)

    original, restored = (Replayed(lambda: Twice(0), finds_falls=False) for _ in range(2))
    assert [original.update(1.0) for _ in range(3)] == [False, False, True]
    restored.load_state_dict(original.state_dict())
    for detector in (original, restored):
        assert [detector.update(1.0) for _ in range(6)] == [False, False, True] * 2


def test_page_hinkley_does_not_start_anew_at_every_improvement() -> None:
    detector, stream = page_hinkley(), list(errors((300, 0.9), (300, 0.05)))
    assert not any(detector.update(error) for error in stream)
    assert len(detector.state_dict()["errors"]) == len(stream)


def test_a_full_log_is_rebuilt_from_its_latest_half() -> None:
    detector = Replayed(lambda: Every(1_000), max_log=10)
    for value in range(9):
        detector.update(float(value))
    assert detector.state_dict()["errors"].tolist() == [float(value) for value in range(9)]
    detector.update(9.0)
    assert detector.state_dict()["errors"].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    state = {"kind": "Every", "errors": torch.zeros(10)}
    with pytest.raises(CheckpointError, match="holds 10 errors, but this drift"):
        detector.load_state_dict(state)
    detector.load_state_dict({"kind": "Every", "errors": torch.zeros(9)})
    with pytest.raises(CheckpointError, match="detector ADWIN, but this one is Every"):
        detector.load_state_dict({"kind": "ADWIN", "errors": torch.zeros(9)})


def test_the_log_is_bounded_and_rebuilding_is_the_same_after_a_restore() -> None:
    def build() -> Replayed:
        from river.drift import ADWIN

        return Replayed(lambda: ADWIN(clock=4), max_log=100)  # type: ignore[no-untyped-call]

    original, restored = build(), build()
    stream = list(errors((950, 0.1), (100, 0.9)))
    for error in stream[:777]:
        original.update(error)
        assert len(original.state_dict()["errors"]) < 100
    restored.load_state_dict(original.state_dict())
    pairs = [(original.update(error), restored.update(error)) for error in stream[777:]]
    assert (True, True) in pairs
    assert all(a == b for a, b in pairs)


def test_kswin_with_another_window_keeps_a_log_to_match() -> None:
    detector = kswin(window_size=50, stat_size=20)
    for error in errors((1000, 0.1)):
        detector.update(error)
    assert 250 <= len(detector.state_dict()["errors"]) < 500


def test_a_detector_may_be_an_object_or_none() -> None:
    detector = kswin()
    assert build_detector(detector) is detector
    assert build_detector(None) is None


def test_a_log_too_short_to_rebuild_is_refused() -> None:
    with pytest.raises(ValueError, match="max_log is 1"):
        Replayed(lambda: kswin(), max_log=1)  # type: ignore[arg-type, return-value]
