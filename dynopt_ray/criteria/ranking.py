"""Make the scores of different groups comparable."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from dynopt_ray.errors import UnknownNameError

Scope = Literal["layer", "global"]
"""Either "layer" (each group loses the same fraction) or "global" (the least important go)."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

Per = Literal["mean", "length", "one"]
"""The number that a group's scores are divided by if the scope is "global"."""

_PERS: tuple[Per, ...] = get_args(Per)


def comparable(
    scores: Mapping[str, Tensor],
    scope: Scope,
    *,
    per: Per = "mean",
    num_gone: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Put the scores of several groups (or parameters) on one scale; larger = more important.

    Args:
        scores: name -> scores of one criterion.
        scope: "global" divides each group's scores by one number per group, so that the size of
            a layer's weights does not count. "layer" replaces scores by ranks. In a group that
            had n entries at the start, the least important entry gets 1/n and the most important
            one gets 1, so that the entries <= f are the fraction f of each group.
        per: the number to divide by for the scope "global". "mean", the mean score, treats all
            groups alike. This is right for units: the units of one group differ little, and any
            preference between groups would empty whole groups. "length", the root of the sum of
            squares, makes each entry of a large group count less. This is right for weights: the
            small layers at the ends of a network can spare the fewest. "one" leaves the scores
            unchanged. This is right for criteria that compare across layers.
        num_gone: name -> number of entries that were removed earlier; they rank as the least
            important.

    Returns:
        The same names and shapes, float64, on the CPU.

    Raises:
        UnknownNameError: `scope` or `per` is unknown.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([30.0, 10.0])}
        >>> {name: s.tolist() for name, s in comparable(scores, "global").items()}
        {'a': [0.5, 1.5], 'b': [1.5, 0.5]}
        >>> {name: s.tolist() for name, s in comparable(scores, "layer").items()}
        {'a': [0.5, 1.0], 'b': [1.0, 0.5]}
    """
    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)
    if per not in _PERS:
        raise UnknownNameError("per", per, _PERS)
    gone = num_gone or {}
    result = {}
    for name, values in scores.items():
        flat = values.detach().double().cpu().flatten()
        if scope == "global":
            figure = _figure(flat, per)
            flat = flat / figure if figure > 0 else flat
        else:
            flat = _shares(flat, gone.get(name, 0))
        result[name] = flat.reshape(values.shape)
    return result


def _figure(flat: Tensor, per: Per) -> float:
    if per == "one":
        return 1.0
    return float(flat.norm() if per == "length" else flat.sum() / max(len(flat), 1))


def _shares(flat: Tensor, num_gone: int) -> Tensor:
    ranks = torch.empty(len(flat), dtype=torch.float64, device="cpu")
    ranks[flat.argsort(stable=True)] = torch.arange(
        1, len(flat) + 1, dtype=torch.float64, device="cpu"
    )
    return (ranks + num_gone) / (len(flat) + num_gone)
