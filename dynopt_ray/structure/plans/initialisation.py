"""How the weights of new units start."""

import contextlib
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynopt_ray.structure.preserve import RandomState

_LEAST = 1e-3


Draw = tuple[int, int]
"""What new weights are drawn from: a seed, and the number of the edit."""


def seeded(draw: Draw, *parts: object) -> int:
    """A seed that depends on a draw and the parts; takes nothing from torch's generator.

    New weights must not move the caller's random state, yet differ from one edit to the next.
    """
    seed, number = draw
    return zlib.crc32(repr((seed, *parts, number)).encode())


def fresh_tensors(
    module: nn.Module, shapes: Mapping[str, Sequence[int]], old: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """The module's own parameters and buffers as its `reset_parameters` would fill these shapes.

    What that method does not reach (a module without one, a parameter used directly, a buffer) is
    drawn from the entries that exist, so that what is positive, or zero or one, stays so.

    Args:
        module: owner of the tensors; not changed.
        shapes: own tensor name -> shape wanted.
        old: own tensor name -> tensor as it is.
        seed: makes the draw repeatable.
    """
    # Not `copy.copy`: a parametrised module refuses it.
    shell = module.__new__(type(module))
    shell.__dict__ = dict(vars(module))
    filled = {
        name: torch.full(tuple(shape), torch.nan, dtype=old[name].dtype, device=old[name].device)
        if old[name].is_floating_point() or old[name].is_complex()
        else torch.zeros(tuple(shape), dtype=old[name].dtype, device=old[name].device)
        for name, shape in shapes.items()
    }
    # Copies of the rest: the method fills them too, and they are not ours to touch.
    shell._parameters = {
        name: p
        if p is None
        else nn.Parameter(filled[name] if name in filled else p.detach().clone(), p.requires_grad)
        for name, p in module._parameters.items()
    }
    shell._buffers = {
        name: b if b is None else filled.get(name, b.clone()) for name, b in module._buffers.items()
    }
    with RandomState(filled.values()) as random, torch.no_grad():
        # Not `torch.manual_seed`: it formats a stack trace per absent backend, 0.4 ms a call.
        torch.default_generator.manual_seed(seed)
        for device in random.cuda_devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        # A module with children may reset them too, and they are not ours to touch.
        if not module._modules and callable(reset := _reset_method(shell)):
            # It may ask for sizes that its settings do not give; what it leaves is drawn below.
            with contextlib.suppress(Exception):
                reset()
        for name, tensor in filled.items():
            if not tensor.is_meta:
                _fill_missing(tensor, old[name])
    return filled


def split_shares(like: Tensor, families: Mapping[int, Tensor], seed: int) -> Tensor:
    """How copied units and their copies share the original's outgoing weights.

    Every weight is shared by a draw of its own. Had a unit and its copy one share each, as in
    Net2Net, their gradients would be multiples of each other, which Adam makes equal: they would
    stay copies for ever.

    Args:
        like: the new outgoing weights, of any shape.
        families: dimension -> LongTensor of its size: coordinates with equal numbers, below that
            size, belong to copies of one unit.
        seed: makes the draw repeatable.

    Returns:
        A tensor like `like`: factors that sum to 1 over the copies of each weight, and are 1 where
        there are none.

    References:
        Chen, Goodfellow, Shlens 2016, "Net2Net", eq. 4, with a share per weight.
    """
    if like.is_meta:
        return torch.ones_like(like)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    parts = torch.rand(like.shape, generator=generator, dtype=dtype, device="cpu").clamp_(_LEAST)
    totals = parts
    for dim, family in families.items():
        totals = torch.zeros_like(totals).index_add_(dim, family, totals)
    for dim, family in families.items():
        totals = totals.index_select(dim, family)
    return parts.div_(totals).to(like)


def _reset_method(module: nn.Module) -> object:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _fill_missing(tensor: Tensor, old: Tensor) -> None:
    missing = tensor.isnan()
    if missing.any():
        at = torch.randint(old.numel(), tensor.shape, device="cpu")
        drawn = old.detach().flatten()[at.to(old.device)]
        tensor.copy_(torch.where(missing, drawn.to(tensor), tensor))
