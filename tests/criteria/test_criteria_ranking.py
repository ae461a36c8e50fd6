"""Scores of different groups on one scale."""

import pytest
import torch

from dynopt_ray.criteria import comparable
from dynopt_ray.errors import UnknownNameError

SCORES = {"a": torch.tensor([2.0, 1.0, 3.0]), "b": torch.tensor([[100.0, 300.0], [0.0, 0.0]])}


def test_global_scores_are_relative_to_their_groups_mean() -> None:
    result = comparable(SCORES, "global")
    assert result["a"].tolist() == [1.0, 0.5, 1.5]
    assert result["b"].tolist() == [[1.0, 3.0], [0.0, 0.0]]


def test_global_scores_per_length_count_less_in_large_groups() -> None:
    scores = {"small": torch.tensor([3.0, 4.0]), "large": torch.full((4, 4), 3.0)}
    result = comparable(scores, "global", per="length")
    assert result["small"].tolist() == [0.6, 0.8]
    assert result["large"].flatten().tolist() == [0.25] * 16


def test_layer_scores_are_shares_of_the_group() -> None:
    result = comparable(SCORES, "layer")
    assert result["a"].tolist() == pytest.approx([2 / 3, 1 / 3, 1])
    assert result["b"].tolist() == [[0.75, 1.0], [0.25, 0.5]]


def test_what_is_gone_already_counts_as_least_important() -> None:
    result = comparable(SCORES, "layer", num_gone={"a": 3})
    assert result["a"].tolist() == pytest.approx([5 / 6, 4 / 6, 1])


def test_a_group_of_zeros_stays_zero() -> None:
    assert comparable({"a": torch.zeros(2)}, "global")["a"].tolist() == [0.0, 0.0]


def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"no scope 'locl'\..*global, layer"):
        comparable(SCORES, "locl")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="no per 'median'"):
        comparable(SCORES, "global", per="median")  # type: ignore[arg-type]
