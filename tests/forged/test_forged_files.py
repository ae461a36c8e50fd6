"""Files that were altered and given a checksum that fits.

Each input is made from a seed. It is either refused with a `CheckpointError`, and then nothing has
changed, bit for bit; or it is accepted, and then what was loaded works.
"""

import time
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from dynopt_ray.errors import CheckpointError
from dynopt_ray.online import DurableLearner, Guard, Journal, OnlineLearner, Widen
from dynopt_ray.storage import read_state, write_state
from dynopt_ray.structure import Grow, Mask, trace
from tests.forged.cases import CASES, Case, taught
from tests.forged.mutations import forged, forged_bytes
from tests.online.learners import events, learner, network, state_bytes

FAST, ALL = 12, 80
MOST_SECONDS, MOST_CHARACTERS = 10.0, 1_500


@cache
def good_file(name: str) -> tuple[bytes, dict[str, bytes]]:
    """The bytes of a good file, and of the files beside it."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        CASES[name]().write(path)
        others = {p.name: p.read_bytes() for p in Path(directory).iterdir() if p != path}
        return path.read_bytes(), others


def attempt(case: Case, path: Path, directory: Path) -> bool:
    """Read a file and return whether it was refused; if not, what was read must work."""
    before, began = case.before(), time.monotonic()
    try:
        read = case.read(path)
    except CheckpointError as error:
        assert len(str(error)) <= MOST_CHARACTERS  # noqa: PT017
        assert case.before() == before
        return True
    finally:
        assert time.monotonic() - began < MOST_SECONDS
    case.use(read, directory)
    return False


def try_forged(name: str, seeds: range, tmp_path: Path) -> int:
    """Try altered states with a checksum that fits; return how many were refused."""
    data, others = good_file(name)
    for other, content in others.items():
        (tmp_path / other).write_bytes(content)
    (tmp_path / "good").write_bytes(data)
    case, refused = CASES[name](), 0
    for seed in seeds:
        state = read_state(tmp_path / "good", kind=case.kind)
        what, changed = forged(state, zlib.crc32(f"{name} {seed}".encode()))
        try:
            write_state(tmp_path / "file", changed, kind=case.kind)
        except (CheckpointError, ValueError):
            continue  # the change cannot be written
        try:
            if attempt(case, tmp_path / "file", tmp_path):
                refused += 1
            else:
                case = CASES[name]()
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}: {what}")
            raise
    return refused


def try_damaged(name: str, seeds: range, tmp_path: Path) -> None:
    """Try files with altered bytes; none may be accepted unless it means the same."""
    data, others = good_file(name)
    for other, content in others.items():
        (tmp_path / other).write_bytes(content)
    case = CASES[name]()
    for seed in seeds:
        changed = forged_bytes(data, zlib.crc32(f"{name} {seed}".encode()))
        (tmp_path / "file").write_bytes(changed)
        if not attempt(case, tmp_path / "file", tmp_path):
            assert read_state(tmp_path / "file", kind=case.kind).keys()
            case = CASES[name]()


@pytest.mark.parametrize("name", CASES)
def test_forged_states_are_refused_whole_or_work(name: str, tmp_path: Path) -> None:
    assert try_forged(name, range(FAST), tmp_path) >= FAST // 4
    try_damaged(name, range(FAST), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_forged_states_are_refused_whole_or_work(name: str, tmp_path: Path) -> None:
    assert try_forged(name, range(FAST, ALL), tmp_path) >= (ALL - FAST) // 4
    try_damaged(name, range(FAST, ALL), tmp_path)


def forged_journal(data: bytes, seed: int) -> bytes:
    """Change a journal's bytes, then give its header and records the checksums they need."""
    changed = bytearray(forged_bytes(data, seed))
    if len(changed) >= 36:
        changed[32:36] = zlib.crc32(changed[:32]).to_bytes(4, "little")
    place = 36
    while place + 28 <= len(changed):
        length = min(int.from_bytes(changed[place + 4 : place + 8], "little"), len(changed))
        body = changed[place + 28 : place + 28 + length]
        changed[place + 20 : place + 24] = zlib.crc32(body).to_bytes(4, "little")
        head = zlib.crc32(changed[place : place + 24]).to_bytes(4, "little")
        changed[place + 24 : place + 28] = head
        place += 28 + length
    return bytes(changed)


def try_journals(seeds: range, path: Path) -> int:
    """Try altered journals with checksums that fit; return how many were refused."""
    path.unlink(missing_ok=True)
    with DurableLearner(learner, path.parent / "good") as durable:
        for first in (1, 4, 7):
            durable.learn(first, [(x.numpy(), y.numpy()) for x, y in events(3, seed=first)])
    data, refused = (path.parent / "good" / "journal").read_bytes(), 0
    for seed in seeds:
        changed = forged_journal(data, seed)
        path.write_bytes(changed)
        began = time.monotonic()
        try:
            with Journal(path) as journal:
                read = list(journal.entries())
                assert [entry.sequence for entry in read] == list(
                    range(journal.base + 1, journal.last + 1)
                )
        except CheckpointError as error:
            assert len(str(error)) <= MOST_CHARACTERS  # noqa: PT017
            assert path.read_bytes() == changed
            refused += 1
        assert time.monotonic() - began < MOST_SECONDS
    return refused


def test_forged_journals_are_refused_or_read(tmp_path: Path) -> None:
    assert try_journals(range(200), tmp_path / "journal") > 50


@pytest.mark.slow
def test_many_forged_journals_are_refused_or_read(tmp_path: Path) -> None:
    assert try_journals(range(200, 3_000), tmp_path / "journal") > 500


def test_a_reaction_that_refuses_its_state_last_undoes_everything(tmp_path: Path) -> None:
    """Its own kind of error comes when the network, wider by then, has been loaded."""

    class Late(Widen):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state)
            if Late.refuses:
                Late.refuses = False  # it takes back what it had
                raise ZeroDivisionError("late")

        refuses = False

    def build() -> OnlineLearner:
        model = network()
        graph = trace(model, torch.zeros(2, 4))
        return learner(model, structure=graph, reactions=[Late()], guard=Guard(window=8))

    saved, subject = build(), build()
    saved.resize([Grow("0", units=2), Mask("4.weight", keep=torch.eye(3, 8) < 1)])
    for built, seed in ((saved, 1), (subject, 2)):
        taught(built, seed=seed)
    before, state = state_bytes(subject, tmp_path), saved.state_dict()
    Late.refuses = True
    try:
        subject.load_state_dict(state)
    except CheckpointError as error:
        assert "ZeroDivisionError: late" in str(error)  # noqa: PT017
    else:
        pytest.fail("it was accepted")
    assert state_bytes(subject, tmp_path) == before
    subject.load_state_dict(state)
    assert state_bytes(subject, tmp_path) == state_bytes(saved, tmp_path)
