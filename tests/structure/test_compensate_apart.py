"""Passes of several batches that run side by side in compensation see nothing of each other."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Mask, Shrink, trace
from tests.structure.editing import assert_same, everything
from tests.structure.test_compensate import halve
from tests.structure.test_compensate_passes import Towers, chain
from tests.structure.test_faults import Subject, failing_operation, fails_at_every, interrupted_line

SIZES = (40, 24, 33)

NUM_THREADS = threading.active_count()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, generator=generator) + n for n, size in enumerate(SIZES)]


class Keeping(nn.Module):
    """Adds to the inputs of its last layer what it computed before the first one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = chain(6, 12, 12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        local = self.keep(x.mean())
        h = self.layers(x)
        y: Tensor = self.head((h + self.kept(local)).relu())
        return y

    def keep(self, value: Tensor) -> Tensor:
        return value

    def kept(self, local: Tensor) -> Tensor:
        return local


class InAttribute(Keeping):
    def keep(self, value: Tensor) -> Tensor:
        self.value = value
        return value

    def kept(self, _: Tensor) -> Tensor:
        return self.value


class OnChild(Keeping):
    """Writes to another module, as some networks write sizes to their blocks."""

    def keep(self, value: Tensor) -> Tensor:
        for layer in self.layers:
            vars(layer)["value"] = value
        return value

    def kept(self, _: Tensor) -> Tensor:
        value: Tensor = vars(self.layers[0])["value"]
        return value


class InList(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.own: list[Tensor] = []

    def keep(self, value: Tensor) -> Tensor:
        self.own.append(value)
        return value

    def kept(self, _: Tensor) -> Tensor:
        return self.own.pop()


class InNestedDict(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, dict[str, Tensor]] = {"inner": {}}

    def keep(self, value: Tensor) -> Tensor:
        self.own["inner"].setdefault("value", value)
        return value

    def kept(self, _: Tensor) -> Tensor:
        return self.own["inner"]["value"]


class InClass(InNestedDict):
    of_all: ClassVar[dict[str, Tensor]] = {}

    def keep(self, value: Tensor) -> Tensor:
        self.of_all["value"] = value
        return value

    def kept(self, _: Tensor) -> Tensor:
        return self.of_all["value"]


class InObject(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.context = SimpleNamespace(value=torch.zeros(()))

    def keep(self, value: Tensor) -> Tensor:
        self.context.value = value
        return value

    def kept(self, _: Tensor) -> Tensor:
        value: Tensor = self.context.value
        return value


class InBuffer(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def keep(self, value: Tensor) -> Tensor:
        self.get_buffer("value").add_(value)  # from zero in each pass
        return value

    def kept(self, _: Tensor) -> Tensor:
        return self.get_buffer("value")


class InNewBuffer(InBuffer):
    def keep(self, value: Tensor) -> Tensor:
        self.value = value.clone()
        return value


class InRandomState(Keeping):
    """Draws from torch's generator before and after: each pass gets the same two numbers."""

    def keep(self, value: Tensor) -> Tensor:
        return value * torch.rand(())

    def kept(self, local: Tensor) -> Tensor:
        return local + torch.rand(())


class Drawn(Keeping):
    """The numbers that `InRandomState` draws, computed in another way."""

    def kept(self, local: Tensor) -> Tensor:
        first, second = torch.rand(2, generator=torch.Generator().manual_seed(9)).unbind()
        return local * first + second


def weights_after(model: nn.Module) -> dict[str, Tensor]:
    """The weights after every width is halved, with compensation."""
    graph = trace(model.eval(), batches()[0])
    torch.manual_seed(9)
    before, kept = torch.get_rng_state(), what_is_kept(model)
    graph.apply(halve(graph), compensate=batches())
    assert torch.equal(torch.get_rng_state(), before)
    assert what_is_kept(model) == kept
    return dict(model.named_parameters())


@pytest.mark.parametrize("most_bytes", [2**28, 1])
@pytest.mark.parametrize(
    "kind",
    [
        *(InAttribute, OnChild, InList, InNestedDict, InClass, InObject, InBuffer, InNewBuffer),
        InRandomState,
    ],
)
def test_what_a_pass_keeps_reaches_no_other(
    kind: type[Keeping], most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynopt_ray.structure.refit.compensation._MOST_BYTES", most_bytes)
    found = weights_after(kind())
    reference = weights_after(Drawn() if kind is InRandomState else Keeping())
    torch.testing.assert_close(found, reference, rtol=0, atol=0)


def what_is_kept(model: nn.Module) -> dict[str, str]:
    """The names of all attributes, and what the containers and buffers of these networks hold."""
    names = [f"{name}.{key}" for name, module in model.named_modules() for key in vars(module)]
    own = {key: str(getattr(model, key, None)) for key in ("own", "of_all", "context", "value")}
    return {"names": str(names), **own}


class Chosen(nn.Module):
    """Each batch takes the branches that it asks for, in the order that it asks for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)
        self.branches = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        h = self.first(x).relu()
        for number in order:
            h = h + self.branches[number](h).relu()
        y: Tensor = self.last(h)
        return y


@pytest.mark.parametrize(
    ("traced", "orders"),
    [
        ((0, 1, 2), [(0, 2), (2, 1), (1,)]),
        # Layers that are used several times, between uses of each other.
        ((0, 1, 0, 1, 2, 2), [(0, 1, 0, 1, 2, 2), (1, 0, 1), (2, 0, 2)]),
        ((0, 1, 0, 1, 2, 2), [(2,), (1, 1, 0), (0, 2, 1, 2)]),
    ],
)
def test_batches_may_take_different_paths(
    traced: tuple[int, ...], orders: Sequence[tuple[int, ...]]
) -> None:
    """Also a path that reaches a later layer first; and no batch needs to reach all layers."""
    given = list(zip(batches(), orders, strict=True))
    errors = []
    for compensate in (None, given):
        model = Chosen().eval()
        wanted = [model(*batch) for batch in given]
        graph = trace(model, (batches()[0], traced))
        receipt = graph.apply([*halve(graph)], compensate=compensate)
        found = [model(*batch) for batch in given]
        errors.append(
            sum((f - w).square().sum().item() for f, w in zip(found, wanted, strict=True))
        )
    assert set(receipt.refitted) == {f"branches.{n}.weight" for n in range(3)} | {"last.weight"}
    assert errors[1] < errors[0] / 2


def test_layers_that_no_batch_reaches_are_refused() -> None:
    model = Chosen().eval()
    graph = trace(model, batches()[0])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    only = [(x, (0, 2)) for x in batches()]
    with pytest.raises(EditError, match=r"never reach 'branches\.1\.weight'"):
        graph.apply(halve(graph), compensate=only)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_more_uses_than_in_the_trace_are_refused() -> None:
    model = Chosen().eval()
    graph = trace(model, batches()[0])
    with pytest.raises(EditError, match=r"batch 1: 'branches\.2\.weight' is used more often"):
        graph.apply(halve(graph), compensate=[batches()[0], (batches()[1], (2, 2))])


def test_products_of_two_parameters_are_no_uses() -> None:
    class Adapted(nn.Module):
        """A low-rank addition to a weight, which is also applied by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.down = nn.Linear(6, 8), nn.Parameter(torch.randn(2, 8))
            self.weight, self.up = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            both = nn.functional.linear(h, self.weight + self.up @ self.down)
            return both + nn.functional.linear(nn.functional.linear(h, self.down), self.up)

    torch.manual_seed(0)
    model = Adapted()
    keep = torch.ones(2, 8, dtype=torch.bool)
    keep[0, 3] = False
    receipt = trace(model, batches()[0]).apply(Mask("down", keep=keep), compensate=batches())
    assert receipt.refitted == ("down",)


class Watching(TorchFunctionMode):
    """What the caller's mode sees: the number of linear layers, and their settings."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, bool]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.linear:
            settings = (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())
            self.seen.append((*settings, torch.is_inference_mode_enabled()))
        return func(*args, **(kwargs or {}))


def test_passes_run_with_the_settings_of_the_caller() -> None:
    model = chain(6, 12, 12, 4).eval()
    graph = trace(model, batches()[0])
    with (
        torch.autocast("cpu", torch.bfloat16),
        Watching() as watching,
        FlopCounterMode(display=False) as counter,
    ):
        graph.apply(halve(graph), compensate=batches())
    assert set(watching.seen) == {(True, False, False)}
    assert len(watching.seen) > 2 * 3 * len(SIZES) - 2
    assert counter.get_total_flops() > 0
    assert not torch.is_autocast_enabled("cpu")


def test_no_threads_remain_and_torch_has_its_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass may use so many threads that their number is limited."""
    monkeypatch.setattr("dynopt_ray.structure.refit.side_by_side.turns._MOST_WORKERS", 1)
    seen: set[int] = set()
    model = chain(6, 12, 12, 4).eval()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    graph = trace(model, batches()[0])
    before = threading.active_count(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        graph.apply(halve(graph), compensate=batches())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[1])
    assert seen == {1}
    assert threading.active_count() == before[0]


def test_too_many_batches_for_the_threads_of_a_machine_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Keeping().eval()
    graph = trace(model, batches()[0])
    before = everything(model, torch.optim.Adam(model.parameters()), graph)
    start, begun = threading.Thread.start, itertools.count()

    def limited(thread: threading.Thread) -> None:
        if next(begun) == len(SIZES) + 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(EditError, match=r"can't start new thread.*Pass fewer and larger batches"):
        graph.apply(halve(graph), compensate=batches())
    assert threading.active_count() == 1
    assert_same(everything(model, torch.optim.Adam(model.parameters()), graph), before)


def test_a_batch_that_fails_takes_the_others_with_it() -> None:
    model = Keeping().eval()
    graph = trace(model, batches()[0])
    optimizer = torch.optim.Adam(model.parameters())
    before = everything(model, optimizer, graph)
    calls = itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) == len(SIZES) + 1:  # in the second pass through the cut network
            raise ZeroDivisionError("planned")

    handle = model.layers[4].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="planned"):
        graph.apply(halve(graph), optimizer=optimizer, compensate=batches())
    handle.remove()
    assert threading.active_count() == 1
    assert_same(everything(model, optimizer, graph), before)


class SideBySide(Subject):
    """Three batches, in a network that takes three passes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.batches = [torch.randn(size, 12) for size in (4, 3, 5)]
        plan = [Shrink("tower.0", remove=[0, 1]), Shrink("tower.2", remove=[3])]
        super().__init__((Towers(), self.batches[0]), plan)

    def apply(self) -> None:
        self.graph.apply(self.plan, optimizer=self.optimizer, compensate=self.batches)

    def state(self) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while threading.active_count() > NUM_THREADS and time.monotonic() < deadline:
            time.sleep(0.01)  # a thread that was told to end may need the processor once more
        return {**super().state(), "threads": threading.active_count()}


@pytest.mark.parametrize("fault", [failing_operation, interrupted_line])
def test_passes_side_by_side_that_fail_leave_no_trace(fault: Any) -> None:
    subject = SideBySide()
    stride = 293 if fault is failing_operation else 397
    numbers = itertools.count(0, stride)
    assert fails_at_every(subject, fault, numbers, subject.apply) > 12
