"""The order of rows: endless permutations, cut into batches of one size."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynopt_ray.tasks import batch_indices, call_model
from dynopt_ray.tasks.batches import check_output, take_rows


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 5), st.booleans())
def test_the_stream_is_one_permutation_after_the_other(
    num_samples: int, batch_size: int, seed: int, shuffled: bool
) -> None:
    size = min(batch_size, num_samples)
    num_batches = -(-3 * num_samples // size)
    generator = seeded(seed) if shuffled else None
    batches = list(islice(batch_indices(num_samples, batch_size, generator), num_batches))
    assert {len(batch) for batch in batches} == {size}
    stream = torch.cat(batches)
    for start in range(0, 3 * num_samples, num_samples):
        epoch = stream[start : start + num_samples]
        assert sorted(epoch.tolist()) == list(range(num_samples))
        if not shuffled:
            assert epoch.tolist() == list(range(num_samples))


def test_the_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    first, same, other = (
        torch.cat(list(islice(batch_indices(50, 8, seeded(seed)), 20))) for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:50], first[50:100])


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
def test_bad_sizes_are_refused_at_the_call(num_samples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="it must be at least 1"):
        batch_indices(num_samples, batch_size)


class Adder(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


def test_models_are_called_with_arguments_or_keywords() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert torch.equal(call_model(Adder(), (a, b)), a)
    assert torch.equal(call_model(Adder(), {"b": a, "a": b}), -a)
    assert torch.equal(call_model(nn.Identity(), a), a)


def test_a_failing_model_says_what_it_was_called_with() -> None:
    with pytest.raises(RuntimeError, match="got Long and Float") as caught:
        call_model(nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.int64))
    assert caught.value.__notes__ == [
        "The model was called with a torch.int64 tensor of shape (2, 3) on cpu. Whole numbers "
        "suit embeddings; other layers need floats: x.astype('float32')."
    ]
    images = torch.full((2, 1, 4, 4), 255)
    with pytest.raises(RuntimeError, match="should be the same") as caught:
        call_model(nn.Conv2d(1, 2, 3), images)
    assert "if x are images of bytes, x.astype('float32') / 255." in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="should be the same") as caught:
        call_model(nn.Conv2d(1, 2, 3), images + 1)
    assert "bytes" not in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        call_model(Adder(), {"a": torch.ones(2), "b": torch.ones(3)})
    assert "a=a torch.float32 tensor of shape (2,) on cpu, b=" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="got Float and Double") as caught:
        call_model(nn.Linear(3, 1).double(), torch.ones(2, 3))
    assert "parameters are torch.float64, and tasks give" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        call_model(nn.Linear(4, 1), torch.ones(2, 3))
    assert caught.value.__notes__[0].endswith("of shape (2, 3) on cpu.")


def test_first_rows_of_all_forms_of_inputs() -> None:
    x = torch.arange(6).reshape(3, 2)
    assert torch.equal(take_rows(x, 2), x[:2])
    assert [len(part) for part in take_rows((x, x), 1)] == [1, 1]
    assert {name: len(v) for name, v in take_rows({"a": x}, 2).items()} == {"a": 2}


def test_sequence_labels_need_classes_in_the_second_dimension() -> None:
    labels = torch.zeros(4, 7, dtype=torch.int64)
    output = torch.zeros(4, 3, 7)
    assert check_output(output, labels) is output
