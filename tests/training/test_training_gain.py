"""Where growth pays: the gain of new units, and widths by worth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.schedules import linear
from dynopt_ray.structure import Grow, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import Budget, Retraining, grow, rank_candidates

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]


def regression() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network and what it has not learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(4000, 3)
    y = torch.stack([x[:, 0].abs(), x[:, 1] * x[:, 2]], 1)
    return model, x, y


def explained(slopes: Tensor, design: Tensor) -> float:
    """The part of the slopes, per sample, that is linear in a design with a constant."""
    design = torch.cat([design, torch.ones(len(design), 1)], 1).double()
    best = torch.linalg.lstsq(design, slopes.double()).solution
    return float((design @ best).square().sum(1).mean())


def test_a_gain_is_the_part_of_the_slope_that_only_the_new_unit_can_follow() -> None:
    model, x, y = regression()
    graph = trace(model, x)
    batches = [(x[:1500], y[:1500]), (x[1500:], y[1500:])]
    found = rank_candidates(graph, {"0": 5}, batches, F.mse_loss, seed=7)["0"]
    assert graph.widths == {"0": 4}
    assert not graph.receipts
    receipt = graph.apply(Grow("0", 5), seed=7)
    with torch.no_grad():
        hidden = model[:2](x)
        slopes = (y - model(x)) * 2 / 2  # -d mse / d output, of one sample
    receipt.undo()
    taken: list[int] = []
    for unit, gain in zip(found.order.tolist(), found.gains.tolist(), strict=True):
        before = explained(slopes, hidden[:, [0, 1, 2, 3, *taken]])
        rest = [u for u in range(4, 9) if u not in taken]
        gains = {u: explained(slopes, hidden[:, [0, 1, 2, 3, *taken, u]]) - before for u in rest}
        assert max(gains, key=gains.__getitem__) == 4 + unit
        assert gain == pytest.approx(gains[4 + unit], rel=0.2)  # the ridge takes its part
        taken.append(4 + unit)


def test_it_reads_convolutions_of_groups_and_flattened_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.Flatten(),
        nn.Linear(3 * 16, 2),
    )
    x, y = torch.randn(200, 1, 6, 6), torch.randint(2, (200,))
    graph = trace(model, x)
    numbers = {group.name: 6 for group in graph}
    found = rank_candidates(graph, numbers, [(x, y)], F.cross_entropy, seed=0)
    assert set(found) == {"0", "4"}
    for one in found.values():
        assert sorted(one.order.tolist()) == list(range(6))
        assert bool((one.gains > 0).all())
        assert one.gains[0] == one.gains.max()


def test_what_gradmax_keeps_can_do_more_than_what_it_drops() -> None:
    """With a squared loss the gain is what the best read-out takes off the loss."""
    model, x, y = regression()
    graph = trace(model, x)
    found = rank_candidates(graph, {"0": 30}, [(x, y)], F.mse_loss, seed=3)["0"]
    graph.apply(Grow("0", 30), seed=3)
    hidden = model[:2](x).detach()
    left = (y - model(x)).detach()
    kept, dropped = (
        hidden[:, [0, 1, 2, 3, *(4 + part).tolist()]]
        for part in (found.order[:6], found.order[-6:])
    )
    assert explained(left, kept) > 1.2 * explained(left, dropped)


def test_a_rule_says_where_a_budget_goes(blobs: Task) -> None:
    def only_first(_: Any, task: Task) -> dict[str, float]:
        assert task is blobs
        return {"0": 1.0, "2": 0.0}

    result = grow(
        blobs.new_model(seed=0), blobs, target=Budget(params=2.0), criterion=only_first, train=2
    )
    params = result.history["params"]
    assert result.history["width/2"].iloc[-2] == 8  # the last round fills up what is left
    assert result.history["width/0"].is_monotonic_increasing
    for number in range(1, 5):
        limit = params[0] * (1 + number / 4)
        assert limit - 25 < params[number] <= limit


def test_equal_worth_goes_where_units_are_cheap_and_fades_as_a_group_grows(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    result = grow(
        model,
        blobs,
        target=Budget(params=2.0),
        criterion=lambda *_: {"0": 1.0, "2": 1.0},
        rounds=1,
        train=1,
    )
    # A unit of "0" (12 wide) costs 13 parameters, one of "2" (8 wide) 16.
    added = {name: width - {"0": 12, "2": 8}[name] for name, width in result.after.widths.items()}
    assert added["0"] >= added["2"] > 0


@pytest.mark.parametrize("criterion", ["even", "gain"])
def test_gradmax_is_exact_repeatable_and_keeps_the_optimizer(
    blobs: Task, trained: Trained, criterion: Any
) -> None:
    states = []
    for draws in (0, 3):
        torch.manual_seed(draws)
        model, optimizer = trained()
        torch.manual_seed(draws)
        losses: list[float] = []
        hook = optimizer.register_step_pre_hook(
            lambda *_, model=model, losses=losses: losses.append(blobs.evaluate(model).loss)
        )
        before = blobs.evaluate(model).loss
        grow(
            model,
            blobs,
            target=Budget(params=1.5),
            criterion=criterion,
            init="gradmax",
            rounds=1,
            train=2,
            optimizer=optimizer,
        )
        hook.remove()
        assert losses[0] == pytest.approx(before, rel=1e-4)
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].shape == parameter.shape
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_growing_ends_where_it_stops_paying(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    result = grow(model, blobs, target=Budget(params=3.0), rounds=8, train=60, min_gain=0.02)
    history = result.history
    assert 2 <= len(history) < 9
    assert history["kept"].tolist() == [True] * (len(history) - 1) + [False]
    smooth = (history["metric"] + history["confidence"]) / 2
    gains = smooth.diff()[1:].tolist()
    assert all(gain >= 0.02 for gain in gains[:-1])
    assert gains[-1] < 0.02
    assert result.after.widths == {
        "0": history["width/0"].iloc[-2],
        "2": history["width/2"].iloc[-2],
    }
    assert blobs.evaluate(model) == result.after.validation
    assert len(result.receipts) == len(history) - 2


def test_one_schedule_can_span_all_trainings(blobs: Task) -> None:
    model = blobs.new_model(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    train = Retraining(2, linear(0.6, num_steps=6, final=0.0), restart=False)
    grow(model, blobs, target={"0": 15}, rounds=3, train=train, optimizer=optimizer)
    assert rates == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
