"""Hostile inputs, made from valid ones by changes that a seed determines."""

import copy
import random
from collections.abc import Callable
from typing import Any

HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 100_000,
    "\x00",
    "\x1b[2J[red]",
    "../../../../etc/passwd",
    "no_such_module:thing",
    "a:b:c",
    "2024-01-31",
    -1,
    0,
    2**31,
    2**63 - 1,
    -(2**63),
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("inf"),
    float("nan"),
    [],
    {},
    [None],
    [[[]]],
    [1, "a", {}],
    list(range(5_000)),
    {"name": "x"},
    {"name": ["x"]},
    {"name": None, "x": 1},
    {"name": "constant", "value": {"name": "constant"}},
    {"low": 1, "high": 0},
    {"low": "a", "high": [], "log": 3},
    {str(number): number for number in range(3_000)},
    {"x" * 10_000: {"y" * 10_000: 1}},
)
"""Values that YAML can hold, each of which is wrong almost everywhere in a spec."""

TOKENS = (
    b"[", b"]", b"{", b"}", b":", b"- ", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!binary ", b"\t",
    b"'", b'"', b"|\n", b"%YAML 1.1\n", b"---\n", b"...\n", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"9" * 5_000, b"[" * 5_000, b"1e999", b"2024-13-45", b"\xed\xa0\x80", b"#", b",", b"\r", b"=",
    b"$\\x$", b"<b>", b"-", b"NaN",
)  # fmt: skip
"""Bytes that mean something to a parser of YAML, JSON or CSV."""


def changed_bytes(content: bytes, seed: int) -> bytes:
    """Return a content with one to four changes at random places."""
    draw = random.Random(seed)
    changes: tuple[Callable[[bytes, int, int], bytes], ...] = (
        lambda old, at, _: old[:at],
        lambda old, at, end: old[:at] + old[end:],
        lambda old, at, end: old[:end] + old[at:],
        lambda old, at, _: old[:at] + draw.choice(TOKENS) + old[at:],
        lambda old, at, end: old[:at] + draw.choice(TOKENS) + old[end:],
        lambda old, at, _: old[:at] + bytes([draw.randrange(256)]) + old[at + 1 :],
        lambda old, at, _: old[:at] + draw.randbytes(draw.randrange(40)) + old[at:],
    )
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.randrange(60))
        content = draw.choice(changes)(content, at, end)
    return content


def changed_data(data: Any, seed: int) -> Any:
    """Return plain data in which one value, at any depth, is replaced, removed or added."""
    draw = random.Random(seed)
    result = copy.deepcopy(data)
    holder, key = draw.choice(list(places(result)))
    change = draw.random()
    if change < 0.8:
        holder[key] = copy.deepcopy(draw.choice(HOSTILE_VALUES))
    elif change < 0.9:
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(("", "x" * 5_000, "name", "low", "kind"))] = draw.choice(HOSTILE_VALUES)
    else:
        holder.append(copy.deepcopy(draw.choice(HOSTILE_VALUES)))
    return result


def places(data: Any) -> "list[tuple[Any, Any]]":
    """Return each place of a value within data, as (its holder, its key or index)."""
    keys = list(data) if isinstance(data, dict) else range(len(data))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((data, key))
        if isinstance(data[key], dict | list):
            found += places(data[key])
    return found
