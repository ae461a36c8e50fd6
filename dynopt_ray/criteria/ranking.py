"""Making scores of different groups comparable."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from dynopt_ray.errors import UnknownNameError

Scope = Literal["layer", "global"]
"""Whether each group loses the same share, or the least important go wherever they are."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

Per = Literal["mean", "length", "one"]
"""What a group's scores are divided by for the scope "global"."""

_PERS: tuple[Per, ...] = get_args(Per)


def comparable(
    scores: Mapping[str, Tensor],
    scope: Scope,
    *,
    per: Per = "mean",
    num_gone: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Scores of several groups (or parameters) on one scale; larger = more important.

    Args:
        scores: name -> scores of one kind.
        scope: "global" divides each group's scores by a figure of the group, so that the size of
            a layer's weights does not count. "layer" replaces scores by ranks: of a group that
            had n entries at the start, the least important one gets 1/n and the most important
            1, so that what is <= f is the share f of each group.
        per: that figure. "mean" treats all groups alike, which is right for units: those of one
            group differ little, and any preference would empty whole groups. "length", the root
            of the sum of squares, makes each entry of a large group count less, which is right
            for weights: small layers at the ends of a network can spare the least. "one" leaves
            them as they are, which is right for criteria that compare across layers.
        num_gone: name -> how many entries are gone already; they count as the least important.

    Returns:
        The same names and shapes, float64, on the CPU.

    Raises:
        UnknownNameError: no such scope, or no such figure.

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
    ranks = torch.empty(len(flat), dtype=torch.float64)
    ranks[flat.argsort(stable=True)] = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return (ranks + num_gone) / (len(flat) + num_gone)
