import random
from collections.abc import Callable
from typing import Any

import pytest

from dynopt_ray import plugins
from dynopt_ray.testing import check_detector

NAMES = [p.name for p in plugins.plugins("detectors") if p.source == "built in"]


class Windowed:
    """Drift when the error rate of 30 events goes from low to high; faults on request."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.latest: list[float] = []
        self.was_low = False

    def update(self, error: float) -> Any:
        self.latest = [*self.latest[-29:], error]
        wrong = sum(self.latest)
        drift = self.was_low and wrong >= 18
        self.was_low = (len(self.latest) == 30 and wrong <= 8) or (self.was_low and not drift)
        faulty: dict[str, Callable[[], Any]] = {
            "deaf": lambda: False,
            "eager": lambda: drift or wrong < 4,
            "random": lambda: random.random() < 0.5,
            "untyped": lambda: int(drift),
        }
        return faulty.get(self.fault, lambda: drift)()

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "was_low": self.was_low}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.fault != "forgetful":
            self.latest, self.was_low = list(state["latest"]), state["was_low"]


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_detector_passes(name: str) -> None:
    # An update of KSWIN takes 170 µs.
    check_detector(plugins.load("detectors", name), num_errors=500 if name == "kswin" else 12_000)


def test_a_sound_detector_passes() -> None:
    check_detector(Windowed)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("deaf", "a jump from 10 % to 80 % is not found within 200 errors"),
        ("eager", "a falling error rate is reported as drift"),
        ("random", "two detectors differ on the same errors"),
        ("untyped", "it must return True or False"),
        ("forgetful", "state_dict is not complete"),
    ],
)
def test_each_fault_is_found(fault: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_detector(lambda: Windowed(fault))


def test_a_state_that_grows_for_ever_is_found() -> None:
    class Hoarder(Windowed):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def update(self, error: float) -> Any:
            self.seen += 1
            return super().update(error)

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "log": [0.5] * self.seen}

    with pytest.raises(AssertionError, match=r"its state has grown from \d+ to \d+ bytes"):
        check_detector(Hoarder)
