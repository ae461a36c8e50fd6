"""Edits of stacked networks are the edits of real ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from dynopt_ray.errors import EditError
from dynopt_ray.population import Population, batch_rows, grow, shrink, train_steps
from dynopt_ray.population.steps import forward
from dynopt_ray.structure import Edit, Graph, Grow, Mask, Shrink, trace
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.models import mlp
from dynopt_ray.training.loop.seeding import seeded

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(80, 6, generator=GENERATOR)
Y = torch.randint(4, (80,), generator=GENERATOR)
TASK = Task.from_arrays(model=lambda: mlp(6, [12, 9], 4), train=(X, Y), validation=(X, Y))
SEEDS = (21, 22, 23)


class Both:
    """Three networks twice: stacked, and as real ones with their optimizers."""

    def __init__(self) -> None:
        self.population = Population(TASK.new_model(seed=0), 3)
        self.graphs: list[Graph] = []
        self.optimizers: list[SGD] = []
        for member, seed in enumerate(SEEDS):
            model = TASK.new_model(seed=member)
            self.population.load(member, model)
            self.population.seeds[member] = seed
            self.graphs.append(trace(model, X[:2]))
            self.optimizers.append(SGD(model.parameters(), lr=0.1, momentum=0.9))
        self.generators = [[torch.Generator().manual_seed(s) for s in SEEDS] for _ in range(2)]
        self.train()

    def edit(self, member: int, edit: Edit, compensate: Tensor | None = None) -> None:
        graph = self.graphs[member]
        with seeded(graph.model, SEEDS[member]):
            graph.apply([edit], optimizer=self.optimizers[member], compensate=compensate)

    def train(self) -> None:
        rows = batch_rows(len(Y), 16, 20, self.generators[0])
        train_steps(self.population, X, Y, rows, learning_rate=0.1, momentum=0.9)
        for member, graph in enumerate(self.graphs):
            generator = self.generators[1][member]
            optimizer = self.optimizers[member]
            TASK.train_steps(graph.model, optimizer, 20, batch_size=16, generator=generator)

    def check(self, tolerance: float = 5e-5) -> None:
        outputs = forward(self.population, X[None])[1]
        for member, graph in enumerate(self.graphs):
            assert self.population.widths[member].tolist() == list(graph.widths.values())
            alone = graph.model(X).detach().T
            assert float((outputs[member] - alone).abs().max()) < tolerance
            # What comes after depends on the optimizer too.
            for layer, name in enumerate(self.population.layout.names):
                weight = graph.model.get_parameter(f"{name}.weight")
                momentum = self.optimizers[member].state[weight]["momentum_buffer"]
                ours = self.population.weight_momenta[layer][member]
                ours = ours[: momentum.shape[0], : momentum.shape[1]]
                assert float((ours - momentum).abs().max()) < tolerance


def keep_of(width: int, *gone: int) -> Tensor:
    keep = torch.ones(width, dtype=torch.bool)
    keep[list(gone)] = False
    return keep


def test_growing_draws_the_same_weights() -> None:
    both = Both()
    grow(both.population, 0, {0: 5, 2: 1})
    grow(both.population, 1, {1: 3})
    both.edit(0, Grow("0", units=5))
    both.edit(2, Grow("0", units=1))
    both.edit(1, Grow("2", units=3))
    both.check(1e-5)
    fresh = both.population.weights[0][0, 12:17]
    assert torch.equal(fresh, both.graphs[0].model.get_parameter("0.weight")[12:].detach())
    both.train()
    both.check()
    # A second growth of the same layer draws others.
    grow(both.population, 0, {0: 5})
    both.edit(0, Grow("0", units=5))
    second = both.population.weights[0][0, 17:22]
    assert not torch.equal(second, fresh)
    assert torch.equal(second, both.graphs[0].model.get_parameter("0.weight")[17:].detach())


def test_growing_changes_no_output() -> None:
    both = Both()
    before = forward(both.population, X[None])[1]
    grow(both.population, 0, {0: 7, 1: 1})
    assert float((forward(both.population, X[None])[1] - before).abs().max()) < 1e-6


@pytest.mark.parametrize("compensate", [None, X[:40], X[:1]])
def test_shrinking_keeps_the_same_units(compensate: Tensor | None) -> None:
    both = Both()
    keeps = {0: keep_of(12, 1, 5, 6), 2: keep_of(12, 0, 2, 4, 8, 11)}
    shrink(both.population, 0, keeps, compensate_NI=compensate)
    shrink(both.population, 1, {1: keep_of(9, 8)}, compensate_NI=compensate)
    for member, keep in keeps.items():
        both.edit(member, Shrink("0", keep=keep.nonzero().flatten().tolist()), compensate)
    both.edit(1, Shrink("2", remove=[8]), compensate)
    both.check()
    both.train()
    both.check()


def test_compensation_brings_the_output_closer() -> None:
    both = Both()
    before = forward(both.population, X[None])[1]
    errors = []
    for compensate in (None, X):
        copy = Both()
        shrink(copy.population, 0, {0: keep_of(12, 1, 5, 6, 7)}, compensate_NI=compensate)
        errors.append(float((forward(copy.population, X[None])[1] - before)[0].square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_masks_follow_growth_and_shrinking() -> None:
    both = Both()
    keep = torch.rand(9, 12, generator=GENERATOR) > 0.4
    both.population.set_mask(1, 0, keep)
    both.edit(0, Mask("2.weight", keep=keep))
    steps: list[Callable[[], None]] = [
        lambda: grow(both.population, 1, {0: 2}),
        lambda: shrink(both.population, 0, {0: keep_of(12, 3, 4)}, compensate_NI=X),
        lambda: shrink(both.population, 1, {0: keep_of(11, 0, 10)}, compensate_NI=X),
    ]
    edits: list[Edit] = [
        Grow("2", units=2),
        Shrink("0", remove=[3, 4]),
        Shrink("2", remove=[0, 10]),
    ]
    for step, edit in zip(steps, edits, strict=True):
        step()
        both.edit(0, edit, None if isinstance(edit, Grow) else X)
        both.train()
        both.check(2e-4)
    mask = both.population.masks[1]
    assert mask is not None
    weights = both.population.weights[1]
    assert not weights[~mask].any()
    # Members without a mask, and padding, count as kept.
    assert mask[1:].all()


@pytest.mark.parametrize("gone", [0, 5, 11])
def test_what_is_left_of_a_masked_unit_that_went_counts_as_kept(gone: int) -> None:
    """The stack stays as wide as the other members are, so the place of the unit stays, too."""
    both = Both()
    into, out = torch.ones(12, 6, dtype=torch.bool), torch.ones(9, 12, dtype=torch.bool)
    into[gone] = False
    out[:, gone] = False
    into[3, 2] = out[4, 7] = False  # these stay
    for layer, keep in enumerate((into, out)):
        both.population.set_mask(layer, 0, keep)
    both.edit(0, Mask("0.weight", keep=into))
    both.edit(0, Mask("2.weight", keep=out))
    shrink(both.population, 0, {0: keep_of(12, gone)})
    both.edit(0, Shrink("0", remove=[gone]))
    assert [num_masked(both.population, layer) for layer in range(3)] == [[1, 0, 0]] * 2 + [[0] * 3]
    # A unit that grows there later is free to learn.
    grow(both.population, 0, {0: 1})
    both.edit(0, Grow("0", units=1))
    both.train()
    both.check(2e-4)
    assert [num_masked(both.population, layer) for layer in range(3)] == [[1, 0, 0]] * 2 + [[0] * 3]
    for layer in range(2):
        assert bool((both.population.weight_momenta[layer][0] != 0).any())
    assert bool(both.population.weights[1][0, :, 11].any())


def num_masked(population: Population, layer: int) -> list[int]:
    """How many weights of each member are held at zero."""
    mask = population.masks[layer]
    return [0] * len(population) if mask is None else (~mask).sum((1, 2)).tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: grow(p, 2, {0: 1}), "no hidden layer 2; .* 0 to 1"),
        (lambda p: grow(p, 0, {0: 0}), "member 0: 0 units to add"),
        (lambda p: grow(p, 0, {1: 2, 2: -1}), "member 2: -1 units to add"),
        (lambda p: shrink(p, 0, {0: keep_of(12)}), "member 0: keep leaves 12 of 12"),
        (lambda p: shrink(p, 0, {2: ~keep_of(12)}), "member 2: keep leaves 0 of 12"),
        (lambda p: shrink(p, 0, {0: keep_of(11, 1)}), r"shape \(11,\); .* \(12,\)"),
        (lambda p: shrink(p, 0, {0: torch.ones(12)}), r"keep is torch\.float32"),
        (lambda p: shrink(p, -1, {0: keep_of(12, 1)}), "no hidden layer -1"),
        (lambda p: shrink(p, 2, {0: keep_of(4, 1)}), "no hidden layer 2"),
    ],
)
def test_impossible_edits_change_nothing(wrong: Callable[[Population], None], message: str) -> None:
    population = Both().population
    before = [tensor.clone() for tensor in population.weights]
    with pytest.raises(EditError, match=message):
        wrong(population)
    assert all(map(torch.equal, population.weights, before))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X.index_fill(0, torch.tensor([7]), torch.nan), "layer 1 of member 2 .* not finite"),
        (1e20 * X, "layer 1 cannot be refitted: .* too large to be squared"),
    ],
)
def test_members_are_not_refitted_on_what_is_not_finite(inputs: Tensor, message: str) -> None:
    population = Both().population
    before = [tensor.clone() for tensor in population.tensors(1)[:2]]
    with pytest.raises(EditError, match=message):
        shrink(population, 0, {2: keep_of(12, 1, 4)}, compensate_NI=inputs)
    assert all(torch.equal(*pair) for pair in zip(population.tensors(1), before, strict=False))
    assert int(population.widths[2, 0]) == 12


def test_a_member_with_broken_weights_is_not_refitted() -> None:
    population = Both().population
    population.biases[1][0, 3] = torch.inf
    with pytest.raises(EditError, match=r"layer 1 of member 0 .* weights are not finite"):
        shrink(population, 0, {0: keep_of(12, 1), 1: keep_of(12, 2)}, compensate_NI=X)
