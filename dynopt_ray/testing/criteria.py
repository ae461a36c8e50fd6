"""The conformance kit for criteria."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.criteria import Batch, Criterion, unit_scores, weight_scores
from dynopt_ray.structure import Graph, trace
from dynopt_ray.testing.requirement import require

_NUM_SAMPLES = 24
_SMALL_BATCH = 5


def check_criterion(
    make: Callable[[], Criterion],
    *,
    granularities: Sequence[Literal["unit", "weight"]] = ("unit", "weight"),
) -> None:
    """Check that a criterion meets its contract.

    The criterion runs on a small network with convolutions, batch normalisation, a residual
    connection and linear layers. It must:

    - score every unit (and every weight) with a finite number >= 0, not all with the same one;
    - return the same scores each time, independent of how the samples are batched;
    - change nothing: weights, buffers, gradients, modes, random state or data;
    - survive pickling, because it is sent to workers.

    Args:
        make: makes the criterion; two criteria that it makes must return the same scores.
        granularities: what the criterion scores.

    Raises:
        AssertionError: the criterion breaks the contract; the message says how.
        PluginError: scores are missing, negative or of the wrong shape.
        DivergedError: scores are not finite.

    Example:
        >>> from dynopt_ray.criteria import magnitude
        >>> check_criterion(magnitude)
    """
    for granularity in granularities:
        _check(make, granularity)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(4, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3, padding=1),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(F.max_pool2d(x + self.block(x), 2))
        return y


def _check(make: Callable[[], Criterion], granularity: Literal["unit", "weight"]) -> None:
    graph, x, y = _material()
    before = copy.deepcopy(graph.model.state_dict())
    data = (x.clone(), y.clone())
    random_state = torch.get_rng_state()
    criterion = make()
    first = _scores(graph, criterion, granularity, [(x, y)])
    _check_untouched(graph, before, random_state)
    require(torch.equal(x, data[0]) and torch.equal(y, data[1]), "the criterion writes to the data")
    require(
        any(bool((score != score.flatten()[0]).any()) for score in first.values()),
        f"all {granularity}s of every group score the same: the criterion ranks nothing",
    )
    for name, other in (("in a second call", criterion), ("when it is made again", make())):
        again = _scores(graph, other, granularity, [(x, y)])
        require(
            _equal(first, again),
            f"the criterion returns different {granularity} scores {name}",
        )
    travelled = pickle.loads(pickle.dumps(criterion))
    require(
        _equal(first, _scores(graph, travelled, granularity, [(x, y)])),
        f"the pickled copy of the criterion returns different {granularity} scores",
    )
    rows = torch.split(torch.arange(_NUM_SAMPLES), _SMALL_BATCH)
    small = _scores(graph, criterion, granularity, [(x[r], y[r]) for r in rows])
    require(
        all(
            torch.allclose(score, small[name], rtol=1e-3, atol=1e-3 * float(score.max()))
            for name, score in first.items()
        ),
        "the same samples in smaller batches give different scores: average over samples, not "
        "over batches",
    )


def _material() -> tuple[Graph, Tensor, Tensor]:
    """A network in training mode, and samples of two classes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _Network()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        x = torch.randn(_NUM_SAMPLES, 1, 6, 6)
        y = torch.arange(_NUM_SAMPLES) % 2
    return trace(model, x[:2]), x, y


def _scores(
    graph: Graph,
    criterion: Criterion,
    granularity: Literal["unit", "weight"],
    batches: Sequence[Batch],
) -> dict[str, Tensor]:
    score = unit_scores if granularity == "unit" else weight_scores
    return score(graph, criterion, batches, loss=F.cross_entropy)


def _check_untouched(graph: Graph, before: dict[str, Tensor], random_state: Tensor) -> None:
    model = graph.model
    require(
        _equal(before, model.state_dict()),
        "the criterion changes the network's weights or buffers",
    )
    require(
        all(p.grad is None for p in model.parameters()),
        "the criterion leaves gradients in the parameters",
    )
    require(all(p.requires_grad for p in model.parameters()), "the criterion freezes parameters")
    require(
        all(m.training for m in model.modules()),
        "the criterion leaves the network in eval mode: restore each module's mode",
    )
    require(
        torch.equal(random_state, torch.get_rng_state()),
        "the criterion draws from torch's global generator: use a generator of its own",
    )


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
