"""Random networks: growth is exact, unread units leave, and what is fixed has to be.

A failure prints the number of the network, its modules, its groups and what is fixed. Rebuild it
with `network(number)`, or check it with `python -m tests.structure.fuzzed_properties NUMBER`.
"""

import pytest
import torch

from tests.structure.fuzzed_networks import network
from tests.structure.fuzzed_properties import Checked, check

NUM_NETWORKS, PER_TEST = 400, 20
FEW = (0, 4, 5, 12, 24, 33, 38, 39, 51, 54, 77, 91)
"""Small networks in which nearly every kind of step occurs."""


@pytest.mark.filterwarnings("ignore:these inputs did not reach")
@pytest.mark.parametrize("number", FEW)
def test_a_few_random_networks(number: int) -> None:
    check(number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these inputs did not reach")
@pytest.mark.parametrize("first", range(0, NUM_NETWORKS, PER_TEST))
def test_many_random_networks(first: int) -> None:
    for number in range(first, first + PER_TEST):
        check(number)


def test_a_number_stands_for_one_network() -> None:
    one, other = network(5), network(5)
    inputs = one.inputs(2)
    assert str(one) == str(other)
    assert torch.equal(inputs, other.inputs(2))
    assert torch.equal(one.model.eval()(inputs), other.model.eval()(inputs))


def test_a_failure_describes_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(checked: Checked) -> list[torch.Tensor]:
        return [torch.full((), float(checked.graph.num_edits))]

    monkeypatch.setattr(Checked, "outputs", drifting)
    with pytest.raises(AssertionError, match="growing") as failure:
        check(4)
    message = str(failure.value)
    assert str(network(4)) in message
    assert "Graph of Composition, widths:" in message
    assert "fixed: " in message
