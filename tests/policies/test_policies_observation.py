"""Features and unit scores, compared with values computed by hand."""

import numpy as np
import pytest
import torch

from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.observation import FEATURES, LIMIT, EpisodeProgress, Performance, observe
from dynopt_ray.policies.unit_scores import lowest, pruned, scores_of, summarise
from dynopt_ray.structure import Mask, Shrink
from tests.policies.small_networks import described, network


def progress(**changes: float) -> EpisodeProgress:
    values = {
        "metric": 0.9,
        "metric_before": 0.8,
        "loss": 0.5,
        "train_loss": 0.3,
        "train_loss_before": 0.4,
        "num_samples": 1_000.0,
        "cost_weight": 0.2,
        "steps_left": 0.75,
    } | changes
    one = {name: np.array([value]) for name, value in values.items()}
    unused = np.array([np.nan])  # no feature is computed from these
    return EpisodeProgress(
        now=Performance(unused, one["metric"], one["loss"], one["train_loss"]),
        before=Performance(unused, one["metric_before"], unused, one["train_loss_before"]),
        num_samples=int(values["num_samples"]),
        cost_weight=one["cost_weight"],
        charges=np.array([[0.0, 0.75, 0.25, 0.0]]),
        steps_left=one["steps_left"],
    )


def features(networks: Descriptors, **changes: float) -> dict[str, float]:
    return dict(zip(FEATURES, observe(networks, progress(**changes))[0].tolist(), strict=True))


def test_features_of_a_network() -> None:
    graph = network()
    graph.apply([Shrink("0", keep=[0, 1, 2, 3]), Mask("0.weight", keep=torch.eye(4) == 0)])
    found = features(described(graph))
    wanted = {
        "width": -1.0,
        "width_before": 0.0,
        "width_after": 0.0,
        "depth": 0.0,
        "kind_linear": 1.0,
        "kind_convolution": 0.0,
        "sparsity": 0.25,
        "cost_share": (12 + 4 + 24) / (12 + 4 + 24 + 6 + 18 + 3),
        "cost_params": (20 + 30 + 21) / (40 + 54 + 21),
        "cost_nonzero": (16 + 30 + 21) / (40 + 54 + 21),
        "cost_flops": (16 + 24 + 18) / (32 + 48 + 18),
        "mean_width": -0.5,
        "smallest_width": -1.0,
        "largest_width": 0.0,
        "metric": 0.9,
        "metric_change": 0.1,
        "loss": np.log(1.5),
        "train_loss": np.log(1.3),
        "train_loss_change": -0.25,
        "loss_gap": 0.2,
        "samples_per_weight": np.log10(1_000 / 67),
        "cost_weight": 0.2,
        "steps_left": 0.75,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    second = features(described(graph, cursor=1))
    assert (second["width"], second["width_before"], second["depth"]) == (0.0, -1.0, 1.0)


def test_features_stay_within_the_limit() -> None:
    found = features(described(network()), loss=1e9, train_loss=1e9, train_loss_before=0.0)
    assert max(map(abs, found.values())) == LIMIT


def test_lowest_scores_first_and_never_padding() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0], [2.0, 0.5, 4.0, 1.0]])
    found = lowest(scores, torch.tensor([3, 4]), torch.tensor([1, 2]))
    assert found.tolist() == [[False, True, False, False], [False, True, False, True]]


def test_pruned_removes_more_weights_from_a_mask() -> None:
    weight = torch.tensor([[0.1, -0.2], [0.3, -0.4]])
    (once,) = pruned([weight], [None], 1)
    assert torch.equal(pruned([weight.t()], [None], 1)[0], once.t())
    assert once.tolist() == [[False, True], [True, True]]
    (twice,) = pruned([weight * once], [once], 2)
    assert twice.tolist() == [[False, False], [False, True]]


def test_pruned_ranks_the_weights_of_all_parameters_together() -> None:
    small, large = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([[5.0, 0.25]])
    kept = pruned([small, large], [None, None], 3)
    assert [keep.tolist() for keep in kept] == [[False, False, True], [[True, False]]]
    # Each parameter keeps its largest weight, and of equal weights the first ones go.
    kept = pruned([small, torch.zeros(4)], [None, None], 5)
    assert [int(keep.sum()) for keep in kept] == [1, 1]
    assert pruned([torch.ones(4)], [None], 2)[0].tolist() == [True, False, False, True]


def test_units_are_summarised() -> None:
    incoming = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [9.0, 9.0]]])
    quantiles, dead, redundant = summarise(
        torch.tensor([[2.0, 4.0, 0.0, 99.0]]), incoming, torch.tensor([3])
    )
    assert quantiles[0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2])
    # Unit 2 is dead, unit 1 points the same way as unit 0, and unit 3 is padding.
    assert dead.tolist() == pytest.approx([1 / 3])
    assert redundant.tolist() == pytest.approx([1 / 3])


def test_a_unit_that_nothing_reads_scores_zero() -> None:
    assert scores_of(torch.tensor([4.0, 9.0]), torch.tensor([0.0, 4.0])).tolist() == [0.0, 6.0]
