"""Compiled networks follow edits, or are refused; they never go on with what they were."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import TraceError
from dynopt_ray.structure import Edit, Grow, Mask, Shrink, trace
from tests.structure.editing import step
from tests.structure.zoo import NETWORKS, trained

# Its compilation warns of torch's own code.
pytestmark = pytest.mark.filterwarnings("ignore")


def follows_edits(name: str, backend: str) -> None:
    """What is compiled gives what the network gives: after each edit, training and undo."""
    torch._dynamo.reset()
    model, inputs = trained(name)
    compiled: Any = torch.compile(model, backend=backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        reference = copy.deepcopy(model)
        step(reference, inputs, torch.optim.SGD(reference.parameters(), lr=0.1))
        step(compiled, inputs, optimizer)
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)

    check()
    graph = trace(model, inputs)
    weight = next(n for n, p in model.named_parameters() if p.ndim > 1)
    plans: list[list[Edit]] = [
        [Grow(g.name, units=2) for g in graph],
        [Shrink(g.name, remove=[0]) for g in graph],
    ]
    for plan in plans:
        graph.apply(plan, optimizer=optimizer)
        check()
    keep = torch.rand(model.get_parameter(weight).shape) > 0.5
    receipt = graph.apply([Mask(weight, keep=keep)], optimizer=optimizer)
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    receipt.undo()
    check()
    graph.receipts[-1].undo()
    check()


@pytest.mark.parametrize("name", ["mlp", "sizes"])
def test_compiled_network_follows(name: str) -> None:
    follows_edits(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"mlp", "sizes"}))
def test_all_compiled_networks_follow(name: str) -> None:
    follows_edits(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_network_compiled_to_machine_code_follows(name: str) -> None:
    follows_edits(name, "inductor")


@pytest.mark.parametrize(("network", "names"), [("excite", [""]), ("resnet", ["1", "2"])])
def test_compiled_in_place_is_traced_as_written(network: str, names: list[str]) -> None:
    model, inputs = trained(network)
    expected = trace(model, inputs)
    compilations: list[object] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    for name in names:
        model.get_submodule(name).compile(backend=backend)
    graph = trace(model, inputs)
    assert graph.widths == expected.widths
    assert graph.fixed == expected.fixed
    assert graph.cost() == expected.cost()
    graph.apply([Shrink(graph.groups[0].name, remove=[1])], compensate=inputs)
    assert not compilations
    reference = copy.deepcopy(model)
    for module in reference.modules():
        module._compiled_call_impl = None
    torch.testing.assert_close(model(inputs), reference(inputs))
    assert compilations


def test_wrapped_networks_and_layers_are_refused() -> None:
    model, inputs = trained("mlp")
    layers: Any = copy.deepcopy(model)
    layers[0] = torch.compile(layers[0])
    with pytest.raises(TraceError, match=r"module '0' is compiled .* its method \.compile\(\)"):
        trace(layers, inputs)
    with pytest.raises(TraceError, match=r"wrapped in DataParallel.*\(\.module\)"):
        trace(nn.DataParallel(model), inputs)

    class FSDPModule:
        """As `fully_shard` makes the class of a network."""

    class Sharded(FSDPModule, nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(TraceError, match=r"module '1' is wrapped in FSDPModule.* before it is"):
        trace(nn.Sequential(nn.Linear(7, 12), Sharded(12, 5)), inputs)
