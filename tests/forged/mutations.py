"""Ways to forge saved state: small changes of a good one, which keep it a valid file."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value in a nested state."""

NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 7, 2**31, 2**62, 2**63, 10**30, 10**400, -(10**18), 0.5, -0.5, 1e308, -1e-9,
    math.nan, math.inf, -math.inf, True, False,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, "", "text", "x" * 10_000, "0", [], [1], ["a"], [[[]]], {}, {"a": 1}, {"0": {}},
)  # fmt: skip
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def forged(state: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """Return what was changed, and a copy of a state with one to three changes."""
    drawn, changed, names = random.Random(seed), copy.deepcopy(state), list[str]()
    for _ in range(drawn.choice((1, 1, 1, 2, 3))):
        path = drawn.choice(list(places(changed)))
        change = drawn.choice(CHANGES)
        if (name := change(changed, path, drawn)) is not None:
            names.append(f"{'.'.join(map(str, path))}: {name}")
    return "; ".join(names), changed


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """Yield where all values in a nested state are, except the state itself."""
    if at:
        yield at
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))[:3]
    for key, entry in entries:
        yield from places(entry, (*at, key))


def parent(state: Any, path: Path) -> Any:
    for key in path[:-1]:
        state = state[key]
    return state


def value_at(state: Any, path: Path) -> Any:
    return parent(state, path)[path[-1]]


def put(state: Any, path: Path, value: Any) -> None:
    holder = parent(state, path)
    if isinstance(holder, tuple):
        whole: Any = list(holder)
        whole[path[-1]] = value
        put(state, path[:-1], whole)
    else:
        holder[path[-1]] = value


def another_value(state: Any, path: Path, drawn: random.Random) -> str | None:
    value = drawn.choice(NUMBERS + OTHERS)
    put(state, path, value)
    return f"set to {value!r:.30}"


def another_number(state: Any, path: Path, drawn: random.Random) -> str | None:
    if not isinstance(value_at(state, path), int | float):
        return None
    return another_value(state, path, random.Random(drawn.randrange(10**6)))


def a_tensor(state: Any, path: Path, drawn: random.Random) -> str | None:
    shape = drawn.choice(((), (1,), (3,), (2, 3), (0,), (0, 5), (1, 1, 1, 1)))
    put(state, path, torch.ones(shape, dtype=drawn.choice(DTYPES)))
    return f"set to a tensor {shape}"


def removed(state: Any, path: Path, drawn: random.Random) -> str | None:
    del drawn
    holder = parent(state, path)
    if not isinstance(holder, dict | list):
        return None
    pop: Any = holder.pop
    pop(path[-1])
    return "removed"


def renamed(state: Any, path: Path, drawn: random.Random) -> str | None:
    holder = parent(state, path)
    if not isinstance(holder, dict):
        return None
    name = drawn.choice(("", "0", "99", "-1", "other", "weight", "é" * 300))
    holder[name] = holder.pop(path[-1])
    return f"renamed to {name!r:.20}"


def doubled(state: Any, path: Path, drawn: random.Random) -> str | None:
    holder = parent(state, path)
    if isinstance(holder, dict):
        holder[drawn.choice(("more", "0", "17"))] = copy.deepcopy(holder[path[-1]])
        return "added under another name"
    if isinstance(holder, list):
        holder.append(copy.deepcopy(value_at(state, path)))
        return "repeated"
    return None


def swapped(state: Any, path: Path, drawn: random.Random) -> str | None:
    other = drawn.choice(list(places(state)))
    if other[: len(path)] == path or path[: len(other)] == other:
        return None
    one, two = value_at(state, path), value_at(state, other)
    put(state, path, two)
    put(state, other, one)
    return f"swapped with {'.'.join(map(str, other))}"


def reshaped(state: Any, path: Path, drawn: random.Random) -> str | None:
    tensor = value_at(state, path)
    if not isinstance(tensor, Tensor):
        return None
    shapes: list[Callable[[], Tensor]] = [
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[:-1],
        lambda: torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        lambda: tensor.new_zeros((0, *tensor.shape[1:])),
        lambda: tensor.transpose(0, -1) if tensor.ndim > 1 else tensor[None, None],
        lambda: tensor.new_zeros([size + 1 for size in tensor.shape]),
    ]
    put(state, path, drawn.choice(shapes)().contiguous())
    return f"of shape {tuple(value_at(state, path).shape)}"


def retyped(state: Any, path: Path, drawn: random.Random) -> str | None:
    tensor = value_at(state, path)
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        return None
    put(state, path, tensor.to(dtype := drawn.choice(DTYPES)))
    return f"of {dtype}"


def spoilt(state: Any, path: Path, drawn: random.Random) -> str | None:
    tensor = value_at(state, path)
    if not isinstance(tensor, Tensor) or not tensor.numel() or tensor.is_complex():
        return None
    number = drawn.choice((math.nan, math.inf, -1.0, 3e38, 0.0))
    if not tensor.is_floating_point():
        number = drawn.choice((-1, 0, 1, 100))
    put(state, path, spoiled := tensor.clone())
    spoiled.view(-1)[drawn.randrange(tensor.numel())] = number
    return f"with a {number}"


CHANGES: tuple[Callable[[Any, Path, random.Random], str | None], ...] = (
    another_value, another_number, another_number, a_tensor, removed, renamed, doubled, swapped,
    reshaped, retyped, spoilt,
)  # fmt: skip


def forged_bytes(data: bytes, seed: int) -> bytes:
    """Return the bytes of a file with its header, or any other part of it, changed."""
    drawn, changed = random.Random(seed), bytearray(data)
    for _ in range(drawn.choice((1, 2, 8))):
        place = drawn.randrange(min(len(changed), drawn.choice((8, 40, 400, len(changed)))))
        kind = drawn.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << drawn.randrange(8)
        elif kind == 1:
            changed[place : place + 4] = drawn.randbytes(4)
        elif kind == 2:
            del changed[place : place + drawn.randrange(1, 20)]
        else:
            changed[place:place] = drawn.randbytes(drawn.randrange(1, 20))
    return bytes(changed)
