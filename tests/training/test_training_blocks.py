"""N:M sparsity: blocks along the inputs, whatever the layer; in one cut or gradually."""

import math

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.structure import Mask, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Fraction, Random, prune
from dynopt_ray.training.pruning.patterns import Pattern


def num_nonzero_per_block(weight: Tensor, of: int, dim: int = 1) -> Tensor:
    blocks = weight.movedim(dim, -1).reshape(-1, of)
    return (blocks != 0).sum(1)


def convolutional_task() -> Task:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 64, 3),
        )

    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2, 3)) * 20).round().clamp(-1, 1).long() + 1
    return Task.from_arrays(model=model, train=(x, y), validation=(x, y), name="images")


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8)])
def test_every_block_along_the_inputs_keeps_its_most_important(keep: int, of: int) -> None:
    task = convolutional_task()
    model = task.new_model(seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune(model, task, granularity=f"{keep}:{of}", compensate=None)
    assert torch.equal(model.get_parameter("0.weight"), before["0.weight"])  # one input channel
    for name, dim in (("2.weight", 0), ("5.weight", 1)):
        weight = model.get_parameter(name).detach()
        assert set(num_nonzero_per_block(weight, of, dim).tolist()) == {keep}
        old = before[name].movedim(dim, -1).reshape(-1, of).abs()
        new = weight.movedim(dim, -1).reshape(-1, of).abs()
        torch.testing.assert_close(new.sum(1), old.topk(keep).values.sum(1))


def test_blocks_of_a_transposed_convolution_stay_within_its_groups() -> None:
    task = convolutional_task()
    network = task.new_model(seed=0)
    assert isinstance(network, nn.Sequential)
    layers = list(network)

    def model(groups: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=groups), *layers[3:]
        )

    for groups, num_masked in ((1, 8 * 6 * 9 // 2), (2, 8 * 3 * 9 // 2)):
        network = model(groups)
        prune(network, task, granularity="2:4", compensate=None)
        assert int((network.get_parameter("2.weight") == 0).sum()) == num_masked
    graph = trace(nn.Sequential(nn.ConvTranspose2d(8, 8, 2, groups=4)), torch.zeros(1, 8, 4, 4))
    with pytest.raises(EditError, match="a multiple of 4 inputs"):
        Pattern(2, 4).dims(graph, {"0.weight": torch.zeros(8, 2, 2, 2)})  # two inputs each


def test_criteria_look_only_at_what_the_pattern_asks_for() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.ones(1, 4))
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.one(x + self.position).relu())
            return out

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    task = Task.from_arrays(model=Positions, train=(x, y), validation=(x, y))
    for criterion in ("activation", "reconstruction"):
        network = task.new_model(seed=0)
        prune(network, task, granularity="2:4", criterion=criterion)
        assert num_nonzero_per_block(network.get_parameter("one.weight"), 4).max() == 2


def test_rounds_approach_it_block_by_block_and_retraining_stays_within(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    result = prune(model, blobs, granularity="2:4", rounds=4, retrain=20)
    weights = [p for p in model.parameters() if p.ndim > 1 and p.shape[1] % 4 == 0]
    total = sum(p.numel() for p in weights) / 2
    gone = result.history["num_removed"].cumsum().tolist()
    assert gone == [math.floor(total * number / 4) for number in range(5)]
    for weight in weights:
        assert num_nonzero_per_block(weight.detach(), 4).max() == 2


def test_compensation_refits_within_the_pattern(blobs: Task) -> None:
    losses = []
    for compensate in (False, True):
        model = blobs.new_model(seed=0)
        blobs.train_steps(model, torch.optim.Adam(model.parameters(), lr=1e-2), 100)
        result = prune(model, blobs, granularity="1:4", compensate=compensate)
        losses.append(result.after.validation.loss)
        weight = model.get_parameter("2.weight").detach()
        assert num_nonzero_per_block(weight, 4).max() == 1
    assert losses[1] < losses[0]


def test_what_a_mask_holds_already_counts(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    graph = trace(model, blobs.example_inputs())
    weight = model.get_parameter("2.weight")
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:, 1::4] = False  # one of each block
    keep[0, :4] = False  # a whole block
    graph.apply(Mask("2.weight", keep=keep))
    prune(graph, blobs, granularity="2:4", compensate=None)
    left = num_nonzero_per_block(weight.detach(), 4)
    assert left[0] == 0
    assert set(left[1:].tolist()) == {2}
    with pytest.raises(EditError, match="'2:4': the network's weights follow it already"):
        prune(graph, blobs, granularity="2:4")


def test_equal_scores_and_masked_weights_are_told_apart() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 3.0, 1.0, 2.0, 4.0]])
    alive = torch.tensor([[True, True, True, True, False, True, True, True]])
    gone = Pattern(2, 4).must_go(scores, alive, dim=1)
    assert gone.tolist() == [[False, False, True, True, False, True, False, False]]


def test_bad_patterns_are_refused(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    for text in ("4:4", "0:4", "5:4"):
        with pytest.raises(ValueError, match="must keep some and not all"):
            prune(model, blobs, granularity=text)
    with pytest.raises(UnknownNameError, match="Did you mean 'weight'"):
        prune(model, blobs, granularity="weights", target=Fraction(remove=0.5))
    with pytest.raises(ValueError, match="says by itself what goes"):
        prune(model, blobs, granularity="2:4", target=Fraction(remove=0.5))
    with pytest.raises(ValueError, match="says by itself what goes"):
        prune(model, blobs, granularity="2:4", recovery=Random())
    with pytest.raises(EditError, match="a multiple of 7 inputs"):
        prune(model, blobs, granularity="2:7")
    with pytest.raises(TypeError, match="target is None"):
        prune(model, blobs)
