"""What CUDA does with single operations: refuses to mix devices, makes the host wait, draws."""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.gpu.stand_in.devices import CPU, Devices

aten = torch.ops.aten
_INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.item.default: "item",
    aten.is_nonzero.default: "item",
    aten.nonzero.default: "nonzero",
    aten.argwhere.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.allclose.default: "equal",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
    aten._linalg_check_errors.default: "status of a solver",
    aten.linalg_cholesky.default: "status of a solver",
    aten._linalg_eigh.default: "status of a solver",
    aten._linalg_svd.default: "status of a solver",
    aten.linalg_lstsq.default: "status of a solver",
}
"""Operations whose size or success the host must know, with the name of the wait."""


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of several devices."""


class Counts:
    """What was done on the GPUs since `reset`.

    Attributes:
        waits: how often the host waited for a device, by reason. A copy from memory that is not
            pinned, or without `non_blocking`, makes the host wait too.
        copies: how often values were copied between host and device, by direction.
        places: the same waits and copies by reason and line of the project.
        operations: number of operations on a GPU.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self.operations = 0

    @property
    def num_waits(self) -> int:
        """How often the host waited, for whatever reason."""
        return self.waits.total()

    def wait(self, reason: str) -> None:
        """Count one wait of the host."""
        self.waits[reason] += 1
        self.places[reason, _place()] += 1

    def copy(self, direction: str, *, waits: bool) -> None:
        """Count one copy between host and device."""
        self.copies[direction] += 1
        if waits:
            self.wait(f"copy {direction}")


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """All operations pass through here, those of C++ and of the backward pass too.

    Attributes:
        context: the device of the call from Python that is under way: C++ creates tensors on the
            device that it believes its arguments to be on, which is the CPU.
        largest: number of elements of a result from which on the memory of a GPU is exhausted.
    """

    def __init__(self, devices: Devices, generators: Sequence[torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.devices = devices
        self.counts = Counts()
        self.context: torch.device | None = None
        self.largest: int | None = None
        self._generators = generators

    @contextlib.contextmanager
    def within(self, device: torch.device | None) -> Iterator[None]:
        """A call from Python whose arguments are on a device."""
        before, self.context = self.context, device
        try:
            yield
        finally:
            self.context = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, options)) if isinstance(t, Tensor)]
        places = [self.devices.of(t) for t in tensors]
        source = next((p for p in places if p.type == "cuda"), None)
        target = self._target(source, options, any_given=bool(tensors))
        if source is None and (target is None or target.type != "cuda"):
            return func(*args, **options)
        if func is aten.is_pinned.default:
            return False
        if func not in _COPIES:
            _refuse_mixed(func, args, tensors, places)
        self._refuse_generator(func, args, options, target)
        self.counts.operations += 1
        self._count(func, args, places)
        if options.get("check_errors"):
            self.counts.wait("status of a solver")
        if options.get("device") is not None and target is not None:
            options["device"] = CPU if target.type == "cuda" else target
        with self._drawing(func, options, target):
            result = func(*args, **options)
        self._mark_results(func, result, tensors, target)
        return result

    def _target(
        self, source: torch.device | None, options: Mapping[str, Any], *, any_given: bool
    ) -> torch.device | None:
        """Return the device of the results."""
        wanted = options.get("device")
        wanted = None if wanted is None else self.devices.named(wanted)
        if wanted is not None and wanted != CPU:
            return wanted
        if not any_given:
            return self.context or wanted
        if wanted is None or self.context is None or self.context != CPU:
            # That C++ asks for the CPU says nothing: it believes that everything is there.
            return source or wanted
        return wanted

    def _refuse_generator(
        self, func: Any, args: Any, options: Mapping[str, Any], target: torch.device | None
    ) -> None:
        given = [g for g in tree_leaves((args, options)) if isinstance(g, torch.Generator)]
        if given and target is not None and target.type == "cuda":
            raise RuntimeError(
                f"Expected a 'cuda' device type for generator but found 'cpu' in {func}"
            )

    def _count(self, func: Any, args: Any, places: Sequence[torch.device]) -> None:
        if func in _WAITS:
            self.counts.wait(_WAITS[func])
        elif func in _INDEXING:
            for index in args[1]:
                if index is None:
                    continue
                if self.devices.of(index) == CPU and places[0] != CPU:
                    self.counts.copy("to the device", waits=True)
                if index.dtype in (torch.bool, torch.uint8) and not _fills(func, args):
                    self.counts.wait("nonzero")
        elif func is aten.copy_.default and places[0] != places[1]:
            self.count_copy(args[1], places[0], non_blocking=bool((*args, False)[2]), into=args[0])

    def count_copy(
        self,
        source: Tensor,
        target: torch.device,
        *,
        non_blocking: bool,
        into: Tensor | None = None,
    ) -> None:
        """Count a copy of a tensor to another device."""
        if target.type != "cuda":
            # Without a target, torch itself puts the copy into pinned memory.
            pinned = into is None or self.devices.is_pinned(into)
            self.counts.copy("to the host", waits=not (non_blocking and pinned))
        elif self.devices.of(source).type != "cuda":
            pinned = self.devices.is_pinned(source)
            self.counts.copy("to the device", waits=not (non_blocking and pinned))
        else:
            self.counts.copy("between devices", waits=False)

    @contextlib.contextmanager
    def _drawing(
        self, func: Any, options: Mapping[str, Any], target: torch.device | None
    ) -> Iterator[None]:
        """Take random numbers of a GPU from that GPU's own generator."""
        random = torch.Tag.nondeterministic_seeded in func.tags
        if not random or target is None or target.type != "cuda" or options.get("generator"):
            yield
            return
        own = self._generators[target.index]
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)

    def _mark_results(
        self, func: Any, result: Any, given: Sequence[Tensor], target: torch.device | None
    ) -> None:
        known = {t.untyped_storage()._cdata for t in given if t.layout is torch.strided}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or target is None:
                continue
            fresh = (
                tensor.layout is not torch.strided
                or tensor.untyped_storage()._cdata not in known
                or func in _SETTING
            )
            if fresh:
                self._use_memory(tensor, target)
                self.devices.mark(tensor, target)

    def _use_memory(self, tensor: Tensor, device: torch.device) -> None:
        if self.largest is not None and device.type == "cuda" and tensor.numel() > self.largest:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {tensor.numel() * 4} bytes."
            )


_SETTING = {
    aten.set_.source_Storage,
    aten.set_.source_Storage_storage_offset,
    aten.set_.source_Tensor,
}
"""They give a tensor another storage, which was made outside of torch's operations."""


_TAKING_NUMBERS = {
    aten.fill.Tensor,
    aten.fill_.Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.index_fill.int_Tensor,
    aten.index_fill_.int_Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""They take a number on the CPU as a value, as all pointwise operations do."""


def _fills(func: Any, args: Any) -> bool:
    """Whether `x[mask] = value` is a fill under a mask, which makes nobody wait."""
    return func is not aten.index.Tensor and args[2].numel() == 1 and len(args[1]) == 1


def _refuse_mixed(
    func: Any, args: Any, tensors: Sequence[Tensor], places: Sequence[torch.device]
) -> None:
    gpus = {str(p) for p in places if p.type == "cuda"}
    if len(gpus) > 1:
        raise MixedDevicesError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(gpus))}, in {func}"
        )
    indices = tree_leaves(args[1]) if func in _INDEXING else []
    for tensor, place in zip(tensors, places, strict=True):
        if place.type == "cuda" or not gpus:
            continue
        if any(tensor is index for index in indices) and place == CPU:
            continue  # they are copied
        if "_fused_" in str(func):
            raise MixedDevicesError(
                f"a `step` on the CPU in {func}: the kernel would read memory of the host "
                "(CUDA error: an illegal memory access was encountered)"
            )
        if place == CPU and tensor.ndim == 0 and _takes_numbers(func, args, tensor):
            continue
        raise MixedDevicesError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{min(gpus)} and {place}! (in {func})"
        )


def _takes_numbers(func: Any, args: Any, tensor: Tensor) -> bool:
    """Whether a number on the CPU may stand beside tensors on a GPU in an operation."""
    if "_foreach_" in str(func):
        lists = [a for a in args if isinstance(a, (list, tuple))]
        return not any(tensor is t for several in lists for t in several)
    if func not in _TAKING_NUMBERS and torch.Tag.pointwise not in func.tags:
        return False
    return tensor is not args[0] or not func.overloadpacket.__name__.endswith("_")


def _place() -> str:
    """Return the line of the project that is being run, or else the innermost one outside torch."""
    outside = ""
    for frame, line in traceback.walk_stack(None):
        name = frame.f_code.co_filename
        if "/stand_in/" in name:
            continue
        if ("/dynopt_ray/" in name or "/dynopt_envs/" in name) and "/tests/" not in name:
            return f"{'/'.join(name.split('/')[-2:])}:{line}"
        if not outside and "/torch/" not in name:
            outside = f"{name.rpartition('/')[2]}:{line}"
    return outside
