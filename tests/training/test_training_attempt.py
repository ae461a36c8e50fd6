"""The loop: kept or rolled back, and never left in between."""

import copy

import pytest
import torch
from torch import nn

from dynopt_ray.errors import DivergedError, EditError
from dynopt_ray.structure import Edit, Graph, Shrink, trace
from dynopt_ray.training import attempt

PLAN: list[Edit] = [Shrink("0", remove=[0, 2])]


def network() -> tuple[Graph, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    graph = trace(model, torch.zeros(2, 2))
    train(graph, optimizer)
    return graph, optimizer


def train(graph: Graph, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss: torch.Tensor = (graph.model(torch.randn(4, 2)) - 1).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def bits(graph: Graph, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    tensors = [*graph.model.state_dict().values(), torch.get_rng_state()]
    for entries in optimizer.state.values():
        tensors += entries.values()
    return copy.deepcopy(tensors)


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_an_accepted_plan_is_kept_with_its_training() -> None:
    graph, optimizer = network()
    seen: list[int] = []

    def accept(before: int, after: int) -> bool:
        seen.extend([before, after])
        return True

    result = attempt(
        graph,
        PLAN,
        judge=lambda: graph["0"].width,
        accept=accept,
        recover=lambda: train(graph, optimizer),
        optimizer=optimizer,
    )
    assert (result.kept, result.before, result.after, seen) == (True, 4, 2, [4, 2])
    assert result.receipt is graph.receipts[-1]
    assert isinstance(result.recovered, float)
    assert optimizer.state[graph.model.get_parameter("0.weight")]["exp_avg"].shape == (2, 2)


def test_a_refused_plan_leaves_no_trace() -> None:
    graph, optimizer = network()
    before = bits(graph, optimizer)
    result = attempt(
        graph,
        PLAN,
        judge=lambda: graph["0"].width,
        accept=lambda before, after: after > before,
        recover=lambda: train(graph, optimizer),
        optimizer=optimizer,
    )
    assert (result.kept, result.after, result.receipt) == (False, 2, None)
    assert equal(before, bits(graph, optimizer))
    assert graph.widths == {"0": 4}


@pytest.mark.parametrize("error", [DivergedError("NaN at step 3"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("place", ["recover", "judge", "accept"])
def test_whatever_fails_is_raised_with_the_old_state_back(error: BaseException, place: str) -> None:
    graph, optimizer = network()
    before = bits(graph, optimizer)

    def fail(where: str) -> bool:
        train(graph, optimizer)
        if where == place:
            raise error
        return True

    with pytest.raises(type(error), match=str(error)):
        attempt(
            graph,
            PLAN,
            judge=lambda: fail("judge"),
            accept=lambda *_: fail("accept"),
            before=True,
            recover=lambda: fail("recover"),
            optimizer=optimizer,
        )
    assert equal(before, bits(graph, optimizer))
    assert not graph.receipts


def test_a_plan_that_cannot_be_applied_is_raised() -> None:
    graph, optimizer = network()
    before = bits(graph, optimizer)
    with pytest.raises(EditError, match="no unit 9"):
        attempt(graph, [Shrink("0", remove=[9])], judge=lambda: 0, accept=lambda *_: True)
    assert equal(before, bits(graph, optimizer))


def test_an_empty_plan_retrains_on_approval_and_takes_the_known_verdict() -> None:
    graph, optimizer = network()
    before = bits(graph, optimizer)
    verdicts = iter([5])
    result = attempt(
        graph,
        [],
        judge=lambda: next(verdicts),
        accept=lambda before, after: after < before,
        before=2,
        recover=lambda: train(graph, optimizer),
        optimizer=optimizer,
    )
    assert (result.before, result.after, result.kept) == (2, 5, False)
    assert equal(before, bits(graph, optimizer))


def test_the_callers_generator_is_rolled_back() -> None:
    graph, _ = network()
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        result = attempt(
            graph,
            [],
            judge=lambda: 0,
            accept=lambda *_: False,
            recover=lambda: torch.rand(1, generator=generator).item(),
            generators=[generator],
        )
        assert result.recovered == torch.rand(1, generator=torch.Generator().manual_seed(1)).item()
