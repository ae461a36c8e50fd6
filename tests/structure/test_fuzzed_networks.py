"""Random networks: every growth is exact, unread units leave, and what is fixed has to be."""

import pytest

from tests.structure.fuzzed_properties import check

NUM_NETWORKS, PER_TEST = 300, 20


@pytest.mark.parametrize("number", range(12))
def test_a_few_random_networks(number: int) -> None:
    check(number)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NUM_NETWORKS, PER_TEST))
def test_many_random_networks(first: int) -> None:
    for number in range(first, first + PER_TEST):
        check(number)
