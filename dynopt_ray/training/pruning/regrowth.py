"""Regrowth: give back masked weights with large gradients, whenever they were cut."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria import Scope
from dynopt_ray.structure import Mask
from dynopt_ray.training.numbers import share


@dataclass(frozen=True, kw_only=True)
class Regrowth:
    """Exchanges weights in each round: drops additional ones and regrows as many by gradient.

    Each cut removes an additional share of weights. In exchange, the same number of masked weights
    is regrown, whether this cut or an earlier one masked them: those with the largest gradients of
    the training loss, which would lower it most if they could move. Regrown weights start from
    zero, or from their least-squares fit with compensation. When the schedule has reached 1, later
    rounds exchange weights at constant sparsity.

    Only for `granularity="weight"`. With `scope="layer"` each parameter regrows as many weights as
    it dropped.

    Attributes:
        share: fraction to exchange in each round, in (0, 1): of the weights that stay, or of the
            masked ones if these are fewer.

    Raises:
        ValueError: the fraction is outside this range.

    References:
        Evci et al. 2020, "Rigging the Lottery" (RigL), section 3. Here gradients are averaged over
        many batches instead of one, and the share does not decay.
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
    """Return the masks after regrowing the masked weights with the largest gradients.

    Args:
        keeps: parameter name -> mask after the cut.
        dropped: parameter name -> bool tensor of its shape, True for weights that the cut masked.
        gradients: parameter name -> gradient of the loss after the cut.
        number: number of weights to regrow.
        scope: "global" regrows the largest gradients of the whole network. "layer" regrows in each
            parameter the same fraction of what it dropped.
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
    """Return the edits for the masks that differ from those before."""
    return [Mask(n, keep=keep) for n, keep in keeps.items() if not torch.equal(keep, before[n])]


def _largest(sizes: Mapping[str, Tensor], number: int) -> dict[str, int]:
    """Return how many of the `number` largest values overall belong to each owner."""
    owner = torch.arange(len(sizes), device="cpu").repeat_interleave(
        torch.tensor([*map(len, sizes.values())], device="cpu")
    )
    top = torch.cat(list(sizes.values())).topk(number).indices
    counts = owner[top].bincount(minlength=len(sizes)).tolist()
    return dict(zip(sizes, counts, strict=True))


def _parts(dropped: Mapping[str, int], number: int) -> dict[str, int]:
    """Split a number in proportion to `dropped`; the largest remainders are rounded up."""
    total = sum(dropped.values())
    parts = {name: number * count // total for name, count in dropped.items()}
    rest = sorted(parts, key=lambda name: number * dropped[name] % total, reverse=True)
    for name in rest[: number - sum(parts.values())]:
        parts[name] += 1
    return parts
