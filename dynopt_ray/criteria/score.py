"""Scoring a network with a criterion given by name, as plain data or as an object."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from dynopt_ray.criteria.base import Criterion, Evidence, Loss
from dynopt_ray.criteria.gradients import Batch
from dynopt_ray.errors import DivergedError, PluginError
from dynopt_ray.plugins import build
from dynopt_ray.structure import Graph

CriterionLike = str | Mapping[str, Any] | Criterion
"""A name, a name with arguments such as {"name": "magnitude", "order": 1}, or the object."""


def unit_scores(
    graph: Graph,
    criterion: CriterionLike,
    batches: Iterable[Batch] | None = None,
    *,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """How important each unit of each width group is.

    Args:
        graph: the traced network; not changed.
        criterion: a criterion's name, its name and arguments, or the object.
        batches: (inputs, targets) of training data, for criteria that look at data.
        loss: (output, targets) -> mean loss, for criteria that look at gradients.

    Returns:
        Group name -> Tensor (width,), float32, >= 0; larger = more important. Scores compare
        within a group; across groups only after `comparable`.

    Raises:
        UnknownNameError: no such criterion.
        MissingGradientError: the criterion needs gradients and cannot have them.
        DivergedError: a score is not finite, because weights or gradients are not or are too
            large.
        PluginError: the criterion does not return what it must; NaN of finite weights, say.

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
    """How important each single weight is.

    Args:
        graph: see `unit_scores`, as for the other arguments.
        criterion: a criterion's name, its name and arguments, or the object.
        batches: training data, for criteria that look at data.
        loss: for criteria that look at gradients.
        only: names of the parameters to score, of those that can be. Default: all of them.

    Returns:
        Parameter name -> tensor of its shape, float32, >= 0; larger = more important; for the
        parameters of two or more dimensions.

    Raises:
        UnknownNameError: no such criterion.
        TypeError: the criterion is only for units.
        MissingGradientError: the criterion needs gradients and cannot have them.
        DivergedError: a score is not finite, because weights or gradients are not or are too
            large.
        PluginError: the criterion does not return what it must; NaN of finite weights, say.
    """
    evidence = Evidence(graph, batches, loss, only)
    scores = build_criterion(criterion).score_weights(evidence)
    wanted = {name: tuple(weight.shape) for name, weight in evidence.weights.items()}
    return _checked(criterion, scores, wanted, "weight of parameter", evidence)


def build_criterion(criterion: CriterionLike) -> Criterion:
    """The criterion that a name or a mapping of its name and arguments describes.

    Raises:
        UnknownNameError: no such criterion.
        SpecError: no `name`, or arguments that the criterion does not take.
        PluginError: the plugin cannot be imported or does not make a criterion.
    """
    made: Any = criterion
    if isinstance(criterion, str | Mapping):
        made = build("criteria", criterion)
    if not (hasattr(made, "score_units") and hasattr(made, "score_weights")):
        raise PluginError(
            f"{criterion!r} is no criterion: {type(made).__name__} lacks score_units or "
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
        raise PluginError(f"criterion {criterion!r} gives {scores!r:.60}, no mapping of scores")
    result = {}
    for name, shape in wanted.items():
        score = scores.get(name)
        if not isinstance(score, Tensor) or tuple(score.shape) != shape:
            raise PluginError(
                f"criterion {criterion!r} gives {_described(score)} for {name!r}, not {shape}"
            )
        if not bool(score.isfinite().all()):
            index = (~score.isfinite()).nonzero()[0].tolist()
            raise _not_finite(
                f"criterion {criterion!r} gives {float(score[tuple(index)])} for {kind} {name!r} "
                f"at {index}",
                evidence,
                is_nan=bool(score[tuple(index)].isnan()),
            )
        if bool((score < 0).any()):
            raise PluginError(f"criterion {criterion!r} gives negative scores for {name!r}")
        result[name] = score.detach().float()
    return result


def _described(score: object) -> str:
    if isinstance(score, Tensor):
        return f"shape {tuple(score.shape)}"
    return "nothing" if score is None else type(score).__name__


def _not_finite(what: str, evidence: Evidence, *, is_nan: bool) -> DivergedError | PluginError:
    """Whose fault a score is: the network's, where something in it is not finite."""
    # Gradients that the criterion has not asked for have no part in its scores.
    gradients = evidence.gradients if "gradients" in vars(evidence) else {}
    for noun, tensors in (("parameter", evidence.parameters), ("the gradient of", gradients)):
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                return DivergedError(f"{what}: {noun} {name!r} is not finite")
    if not is_nan:
        return DivergedError(
            f"{what}, though the network's weights are finite: they are so large that it "
            "overflows, or it divides by zero"
        )
    return PluginError(
        f"{what}, though the network's weights are finite: correct the criterion (does it divide "
        "zero by zero?)"
    )
