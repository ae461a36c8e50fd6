"""Drift detectors: they monitor the errors of a learner and report when the stream has drifted.

The algorithms are river's. Their state is kept in Rust objects and private attributes, which cannot
be saved without pickle, and a checkpoint must never load pickle. So `Replayed` stores the errors
themselves, and a restored detector processes them again. This only requires a deterministic
detector, so it works for all of river's detectors, present and future.
"""

from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from dynopt_ray import plugins
from dynopt_ray.errors import CheckpointError


class Detector(Protocol):
    """The interface that a learner needs of a drift detector."""

    def update(self, error: float, /) -> bool:
        """Take the error of the next event; return whether the stream has drifted."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: numbers, strings, lists and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the detector whose `state_dict` returned `state`."""


class RiverDetector(Protocol):
    """The interface that `Replayed` needs of a river detector."""

    @property
    def drift_detected(self) -> bool:
        """Whether a change was found at the latest value."""

    def update(self, x: float) -> object:
        """Take the next value."""


class Replayed:
    """A river detector whose state is the log of the errors that it has seen.

    When a change is detected, the log is emptied and the detector is built again, because river's
    detectors start over too. The log is bounded: when it reaches `max_log` errors, the detector is
    rebuilt from the latest half. A restored detector is rebuilt at the same errors as one that was
    never saved, so both stay bit-identical. A detector thus remembers between `max_log / 2` and
    `max_log` errors, at twice its own cost per error: 0.4 µs for ADWIN, 0.8 µs for Page–Hinkley.
    Restoring takes at most `max_log` updates: 2 ms for ADWIN, 4 ms for Page–Hinkley.

    Only a rise of the error is reported. ADWIN and KSWIN find any change, but a falling error is
    the normal effect of learning. Reacting to it would raise the learning rate of a network that
    is doing well.

    Args:
        build: builds a new detector, which must be deterministic (seeded).
        max_log: the number of errors at which the log is halved, >= 2.
        finds_falls: whether the detector also finds a falling error. If so, the log decides
            whether the error rose: the latest errors, at most 32, are compared with all before
            them. A detector that finds only rises is trusted, because its log may begin with
            larger errors that the network has unlearned since.

    Raises:
        ValueError: `max_log` is below 2.

    Example:
        >>> from river.drift import ADWIN
        >>> detector = Replayed(lambda: ADWIN(delta=0.01))
        >>> any(detector.update(error) for error in [0.0] * 200 + [1.0] * 200)
        True
    """

    def __init__(
        self,
        build: Callable[[], RiverDetector],
        *,
        max_log: int = 10_000,
        finds_falls: bool = True,
    ) -> None:
        if max_log < 2:
            raise ValueError(f"Replayed: max_log is {max_log}; it must be at least 2")
        self._build = build
        self._max_log = max_log
        self._finds_falls = finds_falls
        self._log = array("d")
        self._detector = build()

    def update(self, error: float) -> bool:
        """Take the error of the next event; return whether the stream has drifted."""
        self._log.append(error)
        self._detector.update(error)
        changed = bool(self._detector.drift_detected)
        risen = changed and (not self._finds_falls or _has_risen(self._log))
        if changed:
            self._restart(array("d"))
        elif len(self._log) >= self._max_log:
            self._restart(self._log[-(self._max_log // 2) :])
        return risen

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's type and the log of errors."""
        return {
            "kind": type(self._detector).__name__,
            "errors": torch.tensor(self._log.tolist(), dtype=torch.float64, device="cpu"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the detector from a log of errors.

        Raises:
            CheckpointError: the log belongs to another detector, or is longer than this detector
                would have kept.
        """
        kind, log = type(self._detector).__name__, state.get("errors")
        if state.get("kind") != kind:
            raise CheckpointError(
                f"the snapshot belongs to the drift detector {state.get('kind')!s:.60}, but this "
                f"one is {kind}; build this learner like the saved one"
            )
        if not isinstance(log, torch.Tensor) or log.ndim != 1 or not log.is_floating_point():
            raise CheckpointError(f"the log of the drift detector is {log!r:.60}; it is no log")
        if not bool(log.isfinite().all()):
            raise CheckpointError("the log of the drift detector has errors that are not finite")
        errors = array("d", log.tolist())
        if len(errors) >= self._max_log:
            raise CheckpointError(
                f"the snapshot holds {len(errors)} errors, but this drift detector keeps fewer "
                f"than {self._max_log}; build it with the same max_log as the saved one"
            )
        self._restart(errors)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the errors instead of river's detector, which is rebuilt from them."""
        return {name: value for name, value in vars(self).items() if name != "_detector"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._restart(self._log)

    def _restart(self, errors: "array[float]") -> None:
        detector = self._build()
        for error in errors:
            detector.update(error)
        self._log, self._detector = errors, detector


def _has_risen(errors: "array[float]") -> bool:
    """Whether the latest errors are larger on average than those before them."""
    num_latest = max(1, min(32, len(errors) // 2))
    latest, earlier = errors[-num_latest:], errors[:-num_latest]
    return not earlier or sum(latest) / len(latest) > sum(earlier) / len(earlier)


def _river(
    path: str, settings: dict[str, Any], *, max_log: int = 10_000, finds_falls: bool = True
) -> Replayed:
    """Return the river detector at a path; river is imported here, at first use."""
    # Not a lambda: learners are pickled (by multiprocessing and joblib).
    build = partial(plugins.import_attribute(path), **settings)
    return Replayed(build, max_log=max_log, finds_falls=finds_falls)


def adwin(**settings: Any) -> Replayed:
    """ADWIN: the means of two parts of an adaptive window differ. `settings` are river's."""
    return _river("river.drift:ADWIN", settings)


def kswin(*, seed: int = 0, window_size: int = 100, **settings: Any) -> Replayed:
    """KSWIN: a Kolmogorov–Smirnov test on a sliding window. `settings` are river's.

    KSWIN remembers only its window, and an update takes 170 µs. So the log is limited to ten
    windows.
    """
    settings |= {"seed": seed, "window_size": window_size}
    return _river("river.drift:KSWIN", settings, max_log=10 * window_size)


def page_hinkley(*, mode: str = "up", **settings: Any) -> Replayed:
    """Page–Hinkley: the errors have risen above their mean. `settings` are river's.

    Args:
        mode: "up" detects only a rise of the error; "both" would start over at every improvement.
        **settings: river's other settings.
    """
    settings |= {"mode": mode}
    return _river("river.drift:PageHinkley", settings, finds_falls=mode != "up")


def ddm(**settings: Any) -> Replayed:
    """DDM: the error rate rises above its minimum; errors must be 0 or 1."""
    return _river("river.drift.binary:DDM", settings, finds_falls=False)


def hddm_a(**settings: Any) -> Replayed:
    """HDDM-A: Hoeffding's bound on averages; errors must be 0 or 1."""
    falls = bool(settings.get("two_sided_test"))
    return _river("river.drift.binary:HDDMA", settings, finds_falls=falls)


def hddm_w(**settings: Any) -> Replayed:
    """HDDM-W: McDiarmid's bound on weighted averages; errors must be 0 or 1."""
    falls = bool(settings.get("two_sided_test"))
    return _river("river.drift.binary:HDDMW", settings, finds_falls=falls)


def build_detector(detector: str | Detector | None) -> Detector | None:
    """Return the detector with a plugin's name, or the given detector itself.

    Raises:
        UnknownNameError: no detector has this name.
    """
    if isinstance(detector, str):
        built: Detector = plugins.load("detectors", detector)()
        return built
    return detector
