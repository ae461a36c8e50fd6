"""Whatever fails on the way, at whatever point, a plan takes effect whole or not at all."""

import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from dynopt_ray.errors import CheckpointError, EditError
from dynopt_ray.structure import (
    Edit,
    Graph,
    Grow,
    Insert,
    Mask,
    Remove,
    Shrink,
    history_of,
    load,
    save,
    trace,
)
from dynopt_ray.structure.preserve.torch_state import TorchState, function_modes, pop_function_mode
from dynopt_ray.structure.preserve.transaction import Transaction
from dynopt_ray.structure.refit.observers import Observer
from tests.structure.editing import assert_same, everything, step
from tests.structure.test_depth import prepared
from tests.structure.zoo import trained

_DispatchMode: Any = TorchDispatchMode
# Modules of Python in which no line is interrupted. What callbacks of weak references raise is
# swallowed. And a line begins between the body of a `with` and the release of its lock, but Ctrl-C
# is not handled there: the lock would be held for good, and no thread could start any more.
_NEVER_INTERRUPTED = ("_weakrefset", "threading")


class Planned(BaseException):
    """A fault that nothing expects."""


class Subject:
    """A trained network with its optimizer, and a plan of everything that there is."""

    def __init__(self, network: tuple[nn.Module, Tensor], plan: Sequence[Edit]) -> None:
        self.model, self.inputs = network
        self.optimizer: Optimizer = torch.optim.Adam(self.model.parameters())
        step(self.model, self.inputs, self.optimizer)
        self.graph: Graph = trace(self.model, self.inputs)
        self.plan = plan

    def apply(self) -> None:
        self.graph.apply(self.plan, optimizer=self.optimizer, compensate=self.inputs)

    def state(self) -> dict[str, Any]:
        found = everything(self.model, self.optimizer, self.graph)
        return {**found, "edits": self.graph.num_edits}


def attention() -> Subject:
    return Subject(
        trained("attention"),
        [
            Mask("head.weight", keep=torch.arange(50).reshape(5, 10) % 2 > 0),
            Shrink("qkv", remove=[0]),
            Grow("embed", units=3),
            Mask("out.weight", keep=torch.arange(104).reshape(13, 8) % 3 > 0),
        ],
    )


def small() -> Subject:
    return Subject(
        trained("mlp"),
        [
            Shrink("0", remove=[0, 5]),
            Grow("2", units=2),
            Mask("2.weight", keep=torch.arange(110).reshape(11, 10) % 2 > 0),
        ],
    )


def depth() -> Subject:
    return Subject(
        prepared("resnet")[:2],
        [
            Insert("3.0", like="3.1"),
            Grow("3.0_1.conv1", units=2),
            Remove("3.1", exact=False),
            Mask("6.weight", keep=torch.arange(24).reshape(4, 6) % 2 > 0),
            Shrink("3.0.conv1", remove=[1]),
        ],
    )


@contextmanager
def failing_call(number: int) -> Iterator[list[int]]:
    """The n-th assignment fails, before it has done anything.

    Yields:
        The number, once it has failed; the other faults do so too.
    """
    calls, struck = itertools.count(), list[int]()

    def failing(method: Any) -> Any:
        def call(*args: Any) -> Any:
            if next(calls) == number:
                struck.append(number)
                raise Planned("planned")
            return method(*args)

        return call

    names = {n for n in vars(Transaction) if not n.startswith("_")} - {"roll_back", "forget"}
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(Transaction, name, failing(getattr(Transaction, name)))
        yield struck


@contextmanager
def failing_operation(number: int) -> Iterator[list[int]]:
    """The n-th operation on tensors finds no memory."""

    calls, struck = itertools.count(), list[int]()

    class Full(_DispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self,
            func: Any,
            types: Any,
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if next(calls) == number:
                struck.append(number)
                raise MemoryError("planned")
            return func(*args, **(kwargs or {}))

    with Full():
        yield struck


@contextmanager
def interrupted_line(number: int, since: str = "") -> Iterator[list[int]]:
    """Ctrl-C before the n-th line that Python runs, in this library and in torch.

    Args:
        number: which line.
        since: count from the first call of a function of this qualified name.
    """
    lines, struck = itertools.count(), list[int]()
    begun = not since

    def on_event(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal begun
        begun = begun or frame.f_code.co_qualname == since
        if not begun or frame.f_globals.get("__name__") in _NEVER_INTERRUPTED:
            return None
        if event == "line" and next(lines) == number:
            struck.append(number)
            raise KeyboardInterrupt("planned")
        return on_event

    before = sys.gettrace()
    gc.disable()  # what its callbacks raise is swallowed
    sys.settrace(on_event)
    try:
        yield struck
    finally:
        sys.settrace(before)
        gc.enable()


def without_spent_modes(state: dict[str, Any]) -> dict[str, Any]:
    """An interrupt within torch's own handling of modes leaves one on: it must do nothing."""
    while function_modes():
        mode = function_modes()[-1]
        assert isinstance(mode, Observer)
        assert not mode._names
        pop_function_mode()
    return {**state, "torch": vars(TorchState())}


def fails_at_every(
    subject: Subject, fault: Callable[[int], Any], numbers: Iterator[int], act: Callable[[], None]
) -> int:
    """Let `act` fail ever later, until nothing is left to fail; each time nothing may have changed.

    Returns:
        How many faults there were.
    """
    before = subject.state()
    for count, number in enumerate(numbers):
        try:
            with fault(number) as struck:
                act()
        # Torch's modes may trip over an interrupt within them, and so hide it.
        except (Planned, MemoryError, KeyboardInterrupt, EditError):
            now = without_spent_modes(subject.state())
            if now["receipts"] != before["receipts"]:
                return count  # at the very end: whole
            assert_same(now, before)
        else:
            if not struck:
                return count
            # What failed was not needed, such as a layer's own way to begin: the plan is whole.
            subject.graph.receipts[-1].undo()
            before["edits"] = subject.graph.num_edits
            assert_same(subject.state(), before)
    raise AssertionError("it never succeeded")


@pytest.mark.parametrize(
    ("make", "stride"),
    [(attention, 1), (small, 1), (depth, 5)],  # depth edits trace again
)
def test_plan_whose_assignments_fail_leaves_no_trace(make: Any, stride: int) -> None:
    subject = make()
    numbers = itertools.count(0, stride)
    assert fails_at_every(subject, failing_call, numbers, subject.apply) > 12
    step(subject.model, subject.inputs, subject.optimizer)


@pytest.mark.parametrize(
    ("make", "stride"),
    [
        *((attention, 101), (small, 61), (depth, 307)),
        pytest.param(attention, 11, marks=pytest.mark.slow),
        pytest.param(small, 5, marks=pytest.mark.slow),
        pytest.param(depth, 41, marks=pytest.mark.slow),
    ],
)
def test_plan_that_finds_no_memory_leaves_no_trace(make: Any, stride: int) -> None:
    subject = make()
    numbers = itertools.count(0, stride)
    assert fails_at_every(subject, failing_operation, numbers, subject.apply) > 2000 / stride
    step(subject.model, subject.inputs, subject.optimizer)


@pytest.mark.parametrize(
    ("make", "stride"),
    [
        *((attention, 599), (small, 599), (depth, 39_989)),
        pytest.param(attention, 7, marks=pytest.mark.slow),
        pytest.param(small, 7, marks=pytest.mark.slow),
        pytest.param(depth, 797, marks=pytest.mark.slow),
    ],
)
def test_plan_that_is_interrupted_leaves_no_trace(make: Any, stride: int) -> None:
    subject = make()
    numbers = itertools.count(0, stride)
    assert fails_at_every(subject, interrupted_line, numbers, subject.apply) > 10_000 / stride
    step(subject.model, subject.inputs, subject.optimizer)


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupt_while_a_failed_plan_is_taken_back(stride: int) -> None:
    subject = attention()
    num_calls = fails_at_every(subject, failing_call, itertools.count(), subject.apply)
    subject = attention()
    before = subject.state()
    for count in itertools.count():
        # The last assignment of all fails, and Ctrl-C comes while the others are taken back.
        with pytest.raises((Planned, KeyboardInterrupt), match="planned") as caught:  # noqa: SIM117
            with (
                failing_call(num_calls - 1),
                interrupted_line(count * stride, since="Transaction.__exit__"),
            ):
                subject.apply()
        assert_same(subject.state(), before)
        if caught.type is Planned:
            break
    assert count > 300 / stride
    subject.apply()


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_undo_that_is_interrupted_is_done_or_not_begun(stride: int) -> None:
    subject = attention()
    for count in itertools.count():
        before = subject.state()
        subject.apply()
        after, receipt = subject.state(), subject.graph.receipts[-1]
        try:
            with interrupted_line(count * stride):
                receipt.undo()
        except KeyboardInterrupt:
            undone = not subject.graph.receipts
            number = {"edits": subject.graph.num_edits}  # only makes new units differ
            assert_same(subject.state(), {**(before if undone else after), **number})
            if not undone:
                receipt.undo()
        else:
            break
        with pytest.raises(EditError, match="undone or committed"):
            receipt.undo()
    assert count > 300 / stride


@pytest.mark.parametrize(
    ("fault", "stride"), [(failing_call, 1), (failing_operation, 3), (interrupted_line, 97)]
)
def test_load_that_fails_leaves_no_trace(fault: Any, stride: int, tmp_path: Path) -> None:
    saved = attention()
    saved.apply()
    save(tmp_path / "network", saved.model, saved.optimizer)
    subject = attention()

    def act() -> None:
        load(tmp_path / "network", subject.model, subject.optimizer)

    before = subject.state()
    for number in itertools.count(0, stride):
        try:
            with fault(number):
                act()
        # What reads the file makes another error of one within it.
        except (Planned, MemoryError, KeyboardInterrupt, CheckpointError):
            now = subject.state()
            if now["history"]:
                break  # at the very end: whole
            assert_same(now, before)
        else:
            break
    assert number > 20
    assert history_of(subject.model) == history_of(saved.model)


@pytest.mark.parametrize(
    ("name", "stride"), [("mlp", 397), pytest.param("resnet", 67, marks=pytest.mark.slow)]
)
def test_tracing_that_is_interrupted_leaves_no_trace(name: str, stride: int) -> None:
    subject = Subject(trained(name), [])

    def everything_and_hooks() -> dict[str, Any]:
        hooks = (modules._global_forward_hooks, modules._global_forward_pre_hooks)
        return {**subject.state(), "hooks": [list(some) for some in hooks]}

    before = everything_and_hooks()
    for count in itertools.count():
        try:
            with interrupted_line(count * stride):
                trace(subject.model, subject.inputs)
        except KeyboardInterrupt:
            assert_same(everything_and_hooks(), before)
        else:
            break
    assert count > 2000 / stride


def test_growth_beyond_all_memory_leaves_no_trace() -> None:
    subject = attention()
    before = subject.state()
    with pytest.raises((RuntimeError, MemoryError), match=r"memory|too large|overflow"):
        subject.graph.apply([*subject.plan, Grow("qkv", units=10**13)], optimizer=subject.optimizer)
    assert_same(subject.state(), before)
    subject.apply()
