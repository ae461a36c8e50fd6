"""The conformance kit for drift detectors."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynopt_ray.online import Detector
from dynopt_ray.storage import read_state, write_state
from dynopt_ray.testing.requirement import require


def check_detector(
    make: Callable[[], Detector], *, within: int = 200, num_errors: int = 12_000
) -> None:
    """Check that a drift detector meets its contract.

    The detector must:

    - return a bool for every error, and the same ones each time;
    - find a jump of the error rate from 10 % to 80 % soon;
    - raise at most 3 alarms while the rate falls from 90 % to 5 %;
    - keep a bounded state of plain data;
    - continue exactly as before after its state has been restored from disk.

    Args:
        make: makes the detector; all detectors that it makes must agree.
        within: the largest number of errors after the jump until the detector must find it.
        num_errors: the number of errors after which the state must not grow any more.

    Raises:
        AssertionError: the detector breaks the contract; the message says how, and at which
            error.

    Example:
        >>> from dynopt_ray.online.drift.detectors import adwin
        >>> check_detector(adwin)
    """
    jump = [*_errors(0.1, 1_000), *_errors(0.8, within)]
    found = _answers(make(), jump)
    require(any(found[1_000:]), f"a jump from 10 % to 80 % is not found within {within} errors")
    require(
        found == _answers(make(), jump),
        "two detectors differ on the same errors: seed their random draws",
    )
    falling = [*_errors(0.9, 60), *_errors(0.5, 100), *_errors(0.2, 200), *_errors(0.05, 600)]
    false_alarms = [i for i, drift in enumerate(_answers(make(), falling)) if drift]
    require(
        len(false_alarms) <= 3,
        f"a falling error rate is reported as drift, at errors {false_alarms}",
    )
    for saved_at in (0, 17, 990, 1_010):
        _require_restored(make, jump, found, saved_at)
    _require_bounded(make(), num_errors)


def _errors(rate: float, num_errors: int) -> list[float]:
    rng = random.Random(f"{rate}")
    return [float(rng.random() < rate) for _ in range(num_errors)]


def _answers(detector: Detector, errors: list[float]) -> list[bool]:
    answers = [detector.update(error) for error in errors]
    for answer in answers:
        require(type(answer) is bool, f"update returns {answer!r}; it must return True or False")
    return answers


def _require_restored(
    make: Callable[[], Detector], errors: list[float], found: list[bool], saved_at: int
) -> None:
    original, restored = make(), make()
    _answers(original, errors[:saved_at])
    _answers(restored, errors[:50])
    restored.load_state_dict(_through_disk(original.state_dict()))
    require(
        _answers(restored, errors[saved_at:]) == found[saved_at:],
        f"a detector restored after {saved_at} errors behaves differently: its state_dict is not "
        "complete",
    )


def _require_bounded(detector: Detector, num_errors: int) -> None:
    sizes = []
    for _ in range(2):
        _answers(detector, [float(i % 10 == 0) for i in range(num_errors)])
        sizes.append(_size(detector.state_dict()))
    require(
        sizes[1] <= max(1.5 * sizes[0], 100_000),
        f"its state has grown from {sizes[0]} to {sizes[1]} bytes over {num_errors} errors: limit "
        "its size",
    )


def _through_disk(state: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        write_state(Path(directory) / "state", state, kind="detector")
        return read_state(Path(directory) / "state", kind="detector")


def _size(state: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        write_state(Path(directory) / "state", state, kind="detector")
        return (Path(directory) / "state").stat().st_size
