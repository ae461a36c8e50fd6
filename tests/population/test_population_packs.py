"""Members of a pack learn what they would learn alone, to the last bit, and what torch learns."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.population import (
    ACTIVATIONS,
    PaddedMember,
    PaddedSize,
    batch_rows,
    checked_layout,
    evaluate_together,
    mlp_layout,
    padded_inputs,
    train_together,
)
from dynopt_ray.structure import Mask, trace
from dynopt_ray.tasks import METRICS, Task
from dynopt_ray.tasks.builtin.models import mlp
from dynopt_ray.training import make_optimizer

ACCURACY = METRICS["accuracy"].function
START = (40, 24)
OPTIMIZERS: dict[str, Any] = {
    "sgd": "sgd",
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "weight_decay": 0.001},
    "adamw": "adamw",
}


class Data:
    """Rows of random data, and networks of some widths that learn them."""

    def __init__(
        self,
        num_inputs: int = 13,
        num_classes: int = 7,
        num_rows: int = 1100,
        start: Sequence[int] = START,
        activation: nn.Module | None = None,
    ) -> None:
        self.widths, self.activation = start, activation or nn.ReLU()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_rows, num_inputs, generator=generator)
        self.y = torch.randint(num_classes, (num_rows,), generator=generator)
        self.task = Task.from_arrays(
            model=lambda: self.made(start),
            train=(self.x, self.y),
            validation=(self.x, self.y),
        )
        self.sizes = (num_inputs, num_classes)
        self.start = checked_layout(self.task.new_model(seed=0))

    def made(self, widths: Sequence[int]) -> nn.Module:
        """Return a network of these widths."""
        layers = mlp(self.sizes[0], widths, self.sizes[1]).children()
        return nn.Sequential(
            *(copy.deepcopy(self.activation) if isinstance(one, nn.ReLU) else one for one in layers)
        )

    def network(self, seed: int) -> nn.Module:
        """Return a network that has lost some units, and every third some weights."""
        random = torch.Generator().manual_seed(seed)
        widths = [
            int(torch.randint(most // 2 + 1, most + 1, (), generator=random))
            for most in self.widths
        ]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.made(widths)
        if seed % 3 == 0:
            weight = model.get_parameter("2.weight")
            keep = torch.rand(weight.shape, generator=random) > 0.4
            trace(model, self.x[:2]).apply([Mask("2.weight", keep=keep)])
        return model

    def member(self, seed: int, optimizer: Any) -> tuple[nn.Module, Optimizer, PaddedMember]:
        model = self.network(seed)
        made = make_optimizer(optimizer, model, lr=0.01)
        return model, made, PaddedMember.of(model, made, self.start)

    def train(
        self, members: Sequence[PaddedMember], seeds: Sequence[int], batch_size: int, steps: int
    ) -> list[tuple[Tensor, float, float]]:
        """Train those of one stack together; return losses, and loss and accuracy afterwards."""
        found: dict[int, tuple[Tensor, float, float]] = {}
        for stack in {member.stack for member in members}:
            places = [place for place, member in enumerate(members) if member.stack == stack]
            some = [members[place] for place in places]
            theirs = [seeds[place] for place in places]
            generators = [torch.Generator().manual_seed(seed) for seed in theirs]
            rows = batch_rows(len(self.y), batch_size, steps, generators)
            rates = torch.tensor([rates_of(seed, steps) for seed in theirs], dtype=torch.float64).T
            x = padded_inputs(self.x)
            losses = train_together(some, x, self.y, rows_SPB=rows, rates_SP=rates)
            after = evaluate_together(some, x, self.y, ACCURACY)
            for index, place in enumerate(places):
                found[place] = losses[:, index], after.losses[index], after.metrics[index]
        return [found[place] for place in range(len(members))]


def rates_of(seed: int, steps: int) -> list[float]:
    """Return a rate for each step; each member has its own rates."""
    return [0.02 / (1 + seed % 5) * (1 - step / (2 * steps)) for step in range(steps)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [7, 32])
def test_a_member_learns_the_same_bits_with_any_neighbours(optimizer: str, batch_size: int) -> None:
    data = Data()
    alone = []
    for seed in range(37):
        *_, member = data.member(seed, OPTIMIZERS[optimizer])
        alone.append((member, data.train([member], [seed], batch_size, 12)[0]))
    assert len({member.stack for member, _ in alone}) == 2
    for seeds in ([3, 1], range(5, 13), range(37), [36, 0, 17]):
        members = [data.member(seed, OPTIMIZERS[optimizer])[2] for seed in seeds]
        found = data.train(members, list(seeds), batch_size, 12)
        for seed, member, (losses, *after) in zip(seeds, members, found, strict=True):
            same, (own_losses, *own_after) = alone[seed]
            assert torch.equal(member.values, same.values)
            assert torch.equal(member.moments, same.moments)
            assert torch.equal(losses, own_losses)
            assert after == own_after


@pytest.mark.parametrize("inputs", [(3, 2, 60), (64, 10, 700), (130, 33, 513)])
def test_sizes_of_data_do_not_matter(inputs: tuple[int, int, int]) -> None:
    data = Data(*inputs)
    alone = [data.member(seed, "adam")[2] for seed in range(9)]
    for seed, member in enumerate(alone):
        data.train([member], [seed], 19, 5)
    together = [data.member(seed, "adam")[2] for seed in range(9)]
    data.train(together, list(range(9)), 19, 5)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.__name__)
def test_other_nonlinearities(activation: type[nn.Module]) -> None:
    """The same bits with neighbours as alone, and what torch learns."""
    data = Data(activation=activation())
    alone = [data.member(seed, "adam")[2] for seed in range(7)]
    figures = [data.train([member], [seed], 7, 6)[0] for seed, member in enumerate(alone)]
    together = [data.member(seed, "adam")[2] for seed in range(7)]
    found = data.train(together, list(range(7)), 7, 6)
    for one, other, ours, theirs in zip(alone, together, figures, found, strict=True):
        assert torch.equal(one.values, other.values)
        assert ours[1:] == theirs[1:]
    model, made, _ = data.member(4, "adam")
    rates = rates_of(4, 6)
    data.task.train_steps(
        model,
        made,
        6,
        batch_size=7,
        generator=torch.Generator().manual_seed(4),
        schedule=lambda step: rates[min(step, 5)],
    )
    copied, optimizer, _ = data.member(4, "adam")
    together[4].write_to(copied, optimizer)
    for ours_after, theirs_after in zip(copied.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours_after, theirs_after, atol=3e-6)
    assert found[4][1] == pytest.approx(data.task.evaluate(model).loss, abs=1e-6)


def test_threads_of_the_process_do_not_matter() -> None:
    """Here, threads share out the sums of a product if there is only one member."""
    data, before = Data(64, 10, 1000, start=(512, 64)), torch.get_num_threads()
    values = []
    for num_threads in (1, 8):
        torch.set_num_threads(num_threads)
        try:
            *_, member = data.member(0, "adam")
            data.train([member], [0], 33, 5)
            assert torch.get_num_threads() == num_threads
        finally:
            torch.set_num_threads(before)
        values.append(member.values)
    assert torch.equal(*values)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_member_learns_what_torch_learns(optimizer: str, seed: int) -> None:
    """In two parts; before the second one the state of torch's optimizer is taken over."""
    data = Data()
    model, made, _ = data.member(seed, OPTIMIZERS[optimizer])
    for _ in range(2):
        member = PaddedMember.of(model, made, data.start)
        ((losses, loss, metric),) = data.train([member], [seed], 32, 15)
        stats = data.task.train_steps(
            model,
            made,
            15,
            batch_size=32,
            generator=torch.Generator().manual_seed(seed),
            schedule=lambda step: rates_of(seed, 15)[min(step, 14)],
        )
        assert float(losses.mean()) == pytest.approx(stats.mean_loss, abs=1e-6)
        theirs = data.task.evaluate(model)
        assert loss == pytest.approx(theirs.loss, abs=1e-6)
        assert metric == pytest.approx(theirs.metric, abs=0.003)
        copy, copied, _ = data.member(seed, OPTIMIZERS[optimizer])
        member.write_to(copy, copied)
        for ours, other in zip(copy.parameters(), model.parameters(), strict=True):
            assert torch.allclose(ours, other, atol=3e-6)
        _same_state(copied, made)


def _same_state(one: Optimizer, other: Optimizer) -> None:
    ours, theirs = (made.state_dict()["state"] for made in (one, other))
    assert ours.keys() == theirs.keys()
    for index, entries in theirs.items():
        assert ours[index].keys() == entries.keys()
        for name, value in entries.items():
            if value is None:
                assert ours[index][name] is None
            else:
                assert torch.allclose(ours[index][name], value, atol=3e-6), name


def test_what_is_written_back_is_what_was_copied() -> None:
    data = Data()
    for name, optimizer in OPTIMIZERS.items():
        model, made, _ = data.member(3, optimizer)
        data.task.train_steps(model, made, 3, generator=torch.Generator().manual_seed(0))
        member = PaddedMember.of(model, made, data.start)
        copy, copied, _ = data.member(3, optimizer)
        member.write_to(copy, copied)
        for ours, other in zip(copy.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, other)
        again = PaddedMember.of(copy, copied, data.start)
        assert torch.equal(again.moments, member.moments), name
        assert again.num_steps == (0 if "sgd" in str(optimizer) else 3)


def test_sizes_follow_from_the_networks_own_widths() -> None:
    start = mlp_layout(mlp(60, (128, 64), 10))
    assert start is not None
    found = {}
    for widths in ((128, 64), (65, 3), (64, 32), (32, 17), (30, 16), (1, 1), (129, 1)):
        layout = mlp_layout(mlp(60, widths, 10))
        assert layout is not None
        found[widths] = PaddedSize.of(layout, start).units[1:-1]
    assert found == {
        (128, 64): (128, 64),
        (65, 3): (128, 64),
        (64, 32): (64, 32),
        (32, 17): (64, 32),
        (30, 16): (32, 16),
        (1, 1): (16, 16),
        (129, 1): (144, 16),
    }


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), "sgd", "a Sequential of"),
        (
            nn.Sequential(
                *(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
            ),
            "sgd",
            "several nonlinearities",
        ),
        (mlp(3, (4,), 2).double(), "sgd", "torch.float64 cannot"),
        (mlp(3, (4,), 2).requires_grad_(False), "sgd", "frozen"),
        (mlp(3, (4,), 2), "rmsprop", "RMSprop cannot train a pack; use sgd, adam or adamw"),
        (mlp(3, (4,), 2), {"name": "adam", "amsgrad": True}, "amsgrad=True cannot"),
        (mlp(3, (4,), 2), {"name": "sgd", "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
    ],
)
def test_what_cannot_be_a_member_is_refused(model: nn.Module, optimizer: Any, message: str) -> None:
    start = mlp_layout(mlp(3, (4,), 2))
    assert start is not None
    with pytest.raises(EditError, match=message):
        PaddedMember.of(model, make_optimizer(optimizer, model, lr=0.1), start)
