import pytest
import torch

from dynopt_ray.errors import DataError
from dynopt_ray.online.learner.recent_events import EventBuffer


@pytest.mark.parametrize("batches", [[1] * 30, [3, 1, 7, 2, 9, 5, 5, 1, 20, 2], [8] * 5, [4, 4]])
def test_the_latest_events_are_kept_in_order(batches: list[int]) -> None:
    memory, seen = EventBuffer(7), torch.empty(0)
    for num_events in batches:
        new = torch.arange(len(seen), len(seen) + num_events, dtype=torch.float32)
        memory.add(new[:, None], -new)
        seen = torch.cat([seen, new])
        for wanted in (1, 3, 7, 100):
            x, y = memory.latest(wanted)
            assert torch.equal(x[:, 0], seen[-min(wanted, 7) :])
            assert torch.equal(y, -x[:, 0])
        assert len(memory) == min(7, len(seen))


def test_a_restored_memory_is_the_same() -> None:
    memory, restored = EventBuffer(5), EventBuffer(5)
    memory.add(torch.arange(13.0)[:, None], torch.arange(13))
    restored.add(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    restored.load_state_dict(memory.state_dict())
    memory.add(torch.ones(3, 1), torch.ones(3, dtype=torch.int64))
    restored.add(torch.ones(3, 1), torch.ones(3, dtype=torch.int64))
    assert torch.equal(memory.latest(5)[0], restored.latest(5)[0])
    restored.load_state_dict(EventBuffer(5).state_dict())
    assert len(restored) == 0


def test_a_saved_memory_does_not_follow_what_comes_later() -> None:
    memory = EventBuffer(3)
    memory.add(torch.arange(4.0)[:, None], torch.arange(4))
    state = memory.state_dict()
    memory.add(torch.full((9, 1), 9.0), torch.full((9,), 9))
    memory.add(torch.full((2, 1), 8.0), torch.full((2,), 8))
    assert state["x"].flatten().tolist() == [1.0, 2.0, 3.0]
    assert state["y"].tolist() == [1, 2, 3]


def test_what_is_added_is_copied() -> None:
    memory, x, y = EventBuffer(3), torch.ones(2, 1), torch.ones(2)
    memory.add(x, y)
    x.zero_()
    y.zero_()
    assert memory.latest(3)[0].flatten().tolist() == [1.0, 1.0]
    assert memory.latest(3)[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), r"x has shape \(2,\).* \(1,\)"),
        (torch.zeros(1, 1), torch.zeros(1, 3).long(), r"y has shape \(3,\).* \(\)"),
        (torch.zeros(1, 1), torch.zeros(1), r"y is torch\.float32.* torch\.int64"),
    ],
)
def test_what_would_have_to_be_rounded_or_bent_is_refused(
    x: torch.Tensor, y: torch.Tensor, message: str
) -> None:
    memory = EventBuffer(3)
    memory.check(x, y)  # the first ones decide
    memory.add(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match=message):
        memory.check(x, y)
    memory.check(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32))


def test_no_capacity_keeps_nothing() -> None:
    memory = EventBuffer(0)
    memory.add(torch.ones(3, 1), torch.ones(3))
    assert len(memory) == len(memory.latest(5)[0]) == 0
