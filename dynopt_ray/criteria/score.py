"""Score a network with a criterion that is given by name, as plain data or as an object."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dynopt_ray.criteria.base import Criterion, Evidence, Loss
from dynopt_ray.criteria.gradients import Batch
from dynopt_ray.errors import DivergedError, PluginError
from dynopt_ray.plugins import build
from dynopt_ray.structure import Graph
from dynopt_ray.transfers import read_numbers

CriterionLike = str | Mapping[str, Any] | Criterion
"""A name, a mapping such as {"name": "magnitude", "order": 1}, or the criterion object itself."""


def unit_scores(
    graph: Graph,
    criterion: CriterionLike,
    batches: Iterable[Batch] | None = None,
    *,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """Score each unit of each width group by its importance.

    Args:
        graph: the traced network; not changed.
        criterion: a criterion's name, a mapping of its name and arguments, or the object itself.
        batches: (inputs, targets) of training data, for criteria that use data.
        loss: (output, targets) -> mean loss, for criteria that use gradients.

    Returns:
        Group name -> Tensor (width,), float32, >= 0; larger = more important. Scores can be
        compared within a group, and across groups only after `comparable`.

    Raises:
        UnknownNameError: the criterion is unknown.
        MissingGradientError: the criterion needs data or gradients that are not available.
        DivergedError: a score is not finite because weights or gradients are not finite or are
            too large.
        PluginError: the criterion returns invalid scores: missing, of the wrong shape, negative,
            or NaN although all weights are finite.

    Example:
        >>> import torch
        >>> from dynopt_ray.structure import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> graph = trace(model, torch.zeros(2, 1))
        >>> scores = unit_scores(graph, {"name": "random", "seed": 3})
        >>> list(scores), scores["0"].shape
        (['0'], torch.Size([2]))
    """
    evidence = Evidence(graph, batches, loss)
    scores = build_criterion(criterion).score_units(evidence)
    wanted = {group.name: (group.width,) for group in graph}
    return _checked(criterion, scores, wanted, "unit of group", evidence)


def weight_scores(
    graph: Graph,
    criterion: CriterionLike,
    batches: Iterable[Batch] | None = None,
    *,
    loss: Loss | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Score each single weight by its importance.

    Args:
        graph: the traced network; not changed.
        criterion: a criterion's name, a mapping of its name and arguments, or the object itself.
        batches: (inputs, targets) of training data, for criteria that use data.
        loss: (output, targets) -> mean loss, for criteria that use gradients.
        only: names of the parameters to score. Default: all parameters of two or more
            dimensions, which are the only ones that can be scored.

    Returns:
        Parameter name -> tensor of its shape, float32, >= 0; larger = more important.

    Raises:
        UnknownNameError: the criterion is unknown.
        TypeError: the criterion scores units only.
        MissingGradientError: the criterion needs data or gradients that are not available.
        DivergedError: a score is not finite because weights or gradients are not finite or are
            too large.
        PluginError: the criterion returns invalid scores: missing, of the wrong shape, negative,
            or NaN although all weights are finite.
    """
    evidence = Evidence(graph, batches, loss, only)
    scores = build_criterion(criterion).score_weights(evidence)
    wanted = {name: tuple(weight.shape) for name, weight in evidence.weights.items()}
    return _checked(criterion, scores, wanted, "weight of parameter", evidence)


def build_criterion(criterion: CriterionLike) -> Criterion:
    """Return the criterion that a name, or a mapping of its name and arguments, describes.

    A criterion object is returned unchanged.

    Raises:
        UnknownNameError: the criterion is unknown.
        SpecError: `name` is missing, or the criterion does not take one of the arguments.
        PluginError: the plugin cannot be imported or does not make a criterion.
    """
    made: Any = criterion
    if isinstance(criterion, str | Mapping):
        made = build("criteria", criterion)
    if not (hasattr(made, "score_units") and hasattr(made, "score_weights")):
        raise PluginError(
            f"{criterion!r} is not a criterion: {type(made).__name__} lacks score_units or "
            "score_weights. Pass a criterion's name, or an object with both methods"
        )
    result: Criterion = made
    return result


def _checked(
    criterion: CriterionLike,
    scores: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    kind: str,
    evidence: Evidence,
) -> dict[str, Tensor]:
    if not isinstance(scores, Mapping):
        raise PluginError(
            f"criterion {criterion!r} returns {scores!r:.60}, which is not a mapping of scores"
        )
    result = {}
    flaws = _flaws([score for name in wanted if isinstance(score := scores.get(name), Tensor)])
    for name, shape in wanted.items():
        score = scores.get(name)
        if not isinstance(score, Tensor) or tuple(score.shape) != shape:
            raise PluginError(
                f"criterion {criterion!r} returns {_described(score)} for {name!r}, not {shape}"
            )
        is_finite, is_negative = flaws[id(score)]
        if not is_finite:
            index = (~score.isfinite()).nonzero()[0].tolist()
            raise _not_finite(
                f"criterion {criterion!r} returns {float(score[tuple(index)])} for {kind} {name!r} "
                f"at {index}",
                evidence,
                is_nan=bool(score[tuple(index)].isnan()),
            )
        if is_negative:
            raise PluginError(f"criterion {criterion!r} returns negative scores for {name!r}")
        result[name] = score.detach().float()
    return result


def _flaws(scores: Sequence[Tensor]) -> dict[int, tuple[bool, bool]]:
    """Return `id` -> whether all scores are finite and whether one is negative, read at once."""
    found = read_numbers([t for s in scores for t in (s.isfinite().all(), (s < 0).any())])
    pairs = zip(scores, found[::2], found[1::2], strict=True)
    return {id(score): (bool(finite), bool(negative)) for score, finite, negative in pairs}


def _described(score: object) -> str:
    if isinstance(score, Tensor):
        return f"shape {tuple(score.shape)}"
    return "nothing" if score is None else type(score).__name__


def _not_finite(what: str, evidence: Evidence, *, is_nan: bool) -> DivergedError | PluginError:
    """Return the error for a score that is not finite: is the network or the criterion to blame?"""
    # Gradients that the criterion has not read cannot have affected its scores.
    gradients = evidence.gradients if "gradients" in vars(evidence) else {}
    for noun, tensors in (("parameter", evidence.parameters), ("the gradient of", gradients)):
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                return DivergedError(f"{what}: {noun} {name!r} is not finite")
    if not is_nan:
        return DivergedError(
            f"{what}, although the network's weights are finite: they are so large that the score "
            "overflows, or the criterion divides by zero"
        )
    return PluginError(
        f"{what}, although the network's weights are finite: correct the criterion (does it "
        "divide zero by zero?)"
    )
