import random
from collections.abc import Iterator

import pytest

from dynopt_ray import plugins
from dynopt_ray.online.drift.detectors import Detector, Replayed, build_detector, kswin

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
