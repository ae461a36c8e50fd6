"""Regrowth: weights come back where the gradient wants them, whenever they were cut."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria import Scope
from dynopt_ray.structure import Mask
from dynopt_ray.training.numbers import share


@dataclass(frozen=True, kw_only=True)
class Regrowth:
    """Exchanges weights in each round: drops some more, regrows as many by gradient.

    Each cut goes further by a share of the weights there are. In exchange, of all masked weights,
    those of this cut and of earlier ones, as many come back as have the largest gradients of the
    training loss: the ones that would lower it most if they could move. They start from zero,
    or, with compensation, from their least-squares fit. Rounds beyond the one in which the
    schedule reaches 1 exchange weights at constant sparsity.

    For `granularity="weight"`. With `scope="layer"` each parameter regrows what it dropped.

    Attributes:
        share: the part of the weights there are, or of those masked if that is less, that is
            exchanged in each round, in (0, 1).

    Raises:
        ValueError: outside that range.

    References:
        Evci et al. 2020, "Rigging the Lottery" (RigL), section 3, with gradients over many
        batches instead of one, and a share that does not decay.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        share("Regrowth: share", self.share)


def regrown(
    keeps: Mapping[str, Tensor],
    dropped: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    number: int,
    scope: Scope,
) -> dict[str, Tensor]:
    """Masks after some of the largest gradients have come back.

    Args:
        keeps: parameter name -> mask after the cut.
        dropped: parameter name -> what the cut took, a bool tensor of its shape.
        gradients: parameter name -> gradient of the loss there.
        number: how many weights come back.
        scope: "global" takes the largest gradients anywhere, "layer" gives every parameter the
            same part of what it dropped.
    """
    sizes = {name: gradients[name].abs().cpu()[~keep] for name, keep in keeps.items()}
    if scope == "global":
        counts = _largest(sizes, number)
    else:
        counts = _parts({name: int(gone.sum()) for name, gone in dropped.items()}, number)
    result = {}
    for name, keep in keeps.items():
        back = (~keep).flatten().nonzero()[:, 0][sizes[name].topk(counts[name]).indices]
        result[name] = keep.clone()
        result[name].view(-1)[back] = True
    return result


def changed_masks(keeps: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[Mask]:
    """The masks that are not what they were."""
    return [Mask(n, keep=keep) for n, keep in keeps.items() if not torch.equal(keep, before[n])]


def _largest(sizes: Mapping[str, Tensor], number: int) -> dict[str, int]:
    """How many of the largest values overall each owner has."""
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor([*map(len, sizes.values())]))
    top = torch.cat(list(sizes.values())).topk(number).indices
    counts = owner[top].bincount(minlength=len(sizes)).tolist()
    return dict(zip(sizes, counts, strict=True))


def _parts(dropped: Mapping[str, int], number: int) -> dict[str, int]:
    """A number in proportion to what was dropped; what is left by rounding goes to the largest."""
    total = sum(dropped.values())
    parts = {name: number * count // total for name, count in dropped.items()}
    rest = sorted(parts, key=lambda name: number * dropped[name] % total, reverse=True)
    for name in rest[: number - sum(parts.values())]:
        parts[name] += 1
    return parts
