"""Actions: amounts computed by hand, and the conformance kit for every built-in action."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.policies import (
    DEFAULT_ACTIONS,
    ActionSet,
    Descriptors,
    GraphEvidence,
    GrowUnits,
    Keep,
    PruneWeights,
    ShrinkUnits,
    Stop,
    describe_graph,
    legal_action,
)
from dynopt_ray.structure import Grow, Mask, Shrink
from dynopt_ray.testing import check_action
from tests.policies.small_networks import described, network

NAMES = [p.name for p in plugins.plugins("actions") if p.source == "built in"]


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_action_passes_the_kit(name: str) -> None:
    check_action(plugins.load("actions", name))


def of_width(width: int, *, start: int = 10, least: int = 1, step: int = 1) -> Descriptors:
    one = described(network())
    return replace(
        one,
        widths=np.array([[width, 6]]),
        start_widths=np.array([[start, 6]]),
        min_widths=np.array([[least, 1]]),
        steps=np.array([[step, 1]]),
    )


@pytest.mark.parametrize(
    ("width", "grown", "shrunk"), [(10, 3, 3), (14, 1, 4), (15, 0, 4), (2, 1, 1), (1, 1, 0)]
)
def test_numbers_of_units_added_and_removed(width: int, grown: int, shrunk: int) -> None:
    now = of_width(width)
    grow, shrink = GrowUnits(fraction=0.3, max_growth=1.5), ShrinkUnits(fraction=0.3)
    assert grow.units(now).tolist() == [grown]
    assert shrink.units(now).tolist() == [shrunk]
    assert (grow.legal(now)[0], shrink.legal(now)[0]) == (grown > 0, shrunk > 0)


def test_unit_counts_are_multiples_of_the_step_and_respect_the_min_width() -> None:
    assert GrowUnits().units(of_width(16, start=16, step=4)).tolist() == [4]
    assert ShrinkUnits().units(of_width(16, start=16, least=8, step=4)).tolist() == [4]
    assert ShrinkUnits().units(of_width(16, start=16, least=14, step=4)).tolist() == [0]


def test_pruning_counts_per_parameter_and_never_masks_the_last_weight() -> None:
    networks = replace(described(network()), num_unmasked_each=np.array([[3, 4, 10, 0]]))
    assert PruneWeights(fraction=0.3).weights(networks).tolist() == [[0, 1, 3, 0]]
    few = replace(networks, num_unmasked_each=np.array([[5]]))
    assert PruneWeights(fraction=0.9).weights(few).tolist() == [[4]]
    last = replace(networks, num_unmasked_each=np.array([[1]]))
    assert not PruneWeights(fraction=0.9).legal(last)[0]


def test_an_action_that_would_never_be_legal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prune: fraction is 1\.0, so .* never be legal"):
        PruneWeights(fraction=1.0)
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"it must be in \(0, 1\)$"):
            PruneWeights(fraction=fraction)
    for action in (GrowUnits(fraction=1.0), ShrinkUnits(fraction=1.0)):
        assert action.legal(of_width(16, start=16, least=4))[0]


def test_plans_remove_units_and_weights_of_least_importance() -> None:
    graph = network()
    with torch.no_grad():
        weight = graph.model.get_parameter("0.weight")
        weight[3] *= 1e-3
        weight[6] *= 2e-3
        graph.model.get_parameter("0.bias")[[3, 6]] = 0
    here = described(graph)
    none = GraphEvidence(graph, [], F.cross_entropy)
    assert ShrinkUnits(fraction=0.25).plan(graph, here, none) == [Shrink("0", remove=[3, 6])]
    (mask,) = PruneWeights(fraction=0.25).plan(graph, here, none)
    assert isinstance(mask, Mask)
    assert set((~mask.keep).nonzero()[:, 0].tolist()) == {3, 6}
    assert GrowUnits(fraction=0.5).plan(graph, here, none) == [Grow("0", units=4)]
    assert Keep().plan(graph, here, none) == Stop().plan(graph, here, none) == []


def test_action_masks_mark_legal_actions() -> None:
    graph = network()
    graph.apply(
        [Shrink("0", keep=[0]), Mask("0.weight", keep=torch.tensor([[True, *[False] * 3]]))]
    )
    start = {"0": 1, "2": 6}
    here = describe_graph(graph, 0, start_widths=start, start_cost=graph.cost(start))
    # One unit is left and cannot be doubled. One weight is left and cannot be masked.
    assert DEFAULT_ACTIONS.mask(here).tolist() == [[1, 0, 0, 0, 1]]
    assert DEFAULT_ACTIONS.mask(described(network(), 1)).tolist() == [[1, 1, 1, 1, 1]]


def test_action_sets_from_names_mappings_and_objects() -> None:
    half = ShrinkUnits(fraction=0.5, label="halve")
    actions = ActionSet(["keep", {"name": "shrink", "fraction": 0.25}, half])
    assert actions.labels == ("keep", "shrink", "halve")
    assert actions[1] == ShrinkUnits(fraction=0.25)
    assert list(actions)[2] is half
    assert actions.place("halve") == 2
    assert actions != DEFAULT_ACTIONS
    assert ActionSet(DEFAULT_ACTIONS.labels) == DEFAULT_ACTIONS
    assert DEFAULT_ACTIONS.labels == ("keep", "grow", "shrink", "prune", "stop")


def test_invalid_action_sets_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"no action 'shrnk'\. Did you mean 'shrink'"):
        ActionSet(["keep", "shrnk"])
    with pytest.raises(SpecError, match="two actions have the same label in shrink, shrink"):
        ActionSet(["shrink", "shrink"])
    with pytest.raises(SpecError, match="give at least one"):
        ActionSet([])
    with pytest.raises(SpecError, match="fraction is 0; it must be in"):
        ActionSet([{"name": "grow", "fraction": 0}])
    with pytest.raises(SpecError, match=r"max_growth is 0.5; it must be at least 1"):
        ActionSet([{"name": "grow", "max_growth": 0.5}])
    with pytest.raises(UnknownNameError, match="no action 'grown'"):
        DEFAULT_ACTIONS.place("grown")


@pytest.mark.parametrize(
    ("preferred", "mask", "chosen"),
    [
        ("grow", [1, 1, 1, 1, 1], "grow"),
        ("grow", [1, 0, 1, 1, 1], "keep"),
        ("grow", [0, 0, 1, 1, 0], "shrink"),  # above a budget
        ("stop", [0, 0, 0, 1, 0], "prune"),
    ],
)
def test_legal_action_falls_back_to_keep_then_to_any_legal_action(
    preferred: str, mask: list[int], chosen: str
) -> None:
    place = legal_action(preferred, np.array(mask, dtype=np.int8))
    assert DEFAULT_ACTIONS.labels[place] == chosen
