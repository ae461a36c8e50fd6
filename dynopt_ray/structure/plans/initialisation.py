"""The initial weights of new units."""

import contextlib
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynopt_ray.structure.preserve import RandomState

_LEAST = 1e-3


# Their `reset_parameters` fills these tensors, whatever the sizes.
_FILLING = {
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm),
}
_FILLED = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}

Draw = tuple[int, int]
"""What determines the random weights of new units: a seed, and the number of the edit."""


def seeded(draw: Draw, *parts: object) -> int:
    """Return a seed that depends on a draw and the parts, without using torch's generator.

    New weights must not change the caller's random state, yet must differ from edit to edit.
    """
    seed, number = draw
    return zlib.crc32(repr((seed, *parts, number)).encode())


def fresh_tensors(
    module: nn.Module, shapes: Mapping[str, Sequence[int]], old: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Return tensors of these shapes, filled as the module's `reset_parameters` would fill them.

    Tensors that this method does not fill (of a module without the method, parameters used
    directly, buffers) are drawn from the existing entries. So positive values stay positive, and
    zeros or ones stay zeros or ones. What does not learn is drawn unit by unit, because its entries
    may belong together: those of a grid increase along each row. So are parameters whose entries
    increase in all rows. A buffer of zeros and ones is taken for a mask; new units are not masked.

    Args:
        module: owner of the tensors; not changed.
        shapes: the module's own name of a tensor -> its new shape.
        old: the module's own name of a tensor -> the current tensor.
        seed: seed of the draw.
    """
    # Not `copy.copy`: a parametrised module refuses it.
    shell = module.__new__(type(module))
    # Plain tensors (a weight computed from others) are copied: the method may fill them in place.
    shell.__dict__ = {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in vars(module).items()
    }
    filled = {
        name: torch.full(tuple(shape), torch.nan, dtype=old[name].dtype, device=old[name].device)
        if old[name].is_floating_point() or old[name].is_complex()
        else torch.zeros(tuple(shape), dtype=old[name].dtype, device=old[name].device)
        for name, shape in shapes.items()
    }
    # Copy the other tensors: the method fills them, too, and the module must not change.
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
        # A module with children may reset them, too, and they must not change.
        if not module._modules and callable(reset := _reset_method(shell)):
            # It may fail, because attributes have the old sizes. Missing values are drawn below.
            with contextlib.suppress(Exception):
                reset()
        for name, tensor in filled.items():
            if not tensor.is_meta and not _is_filled(module, name):
                _fill_missing(tensor, old[name])
    return filled


def split_shares(like: Tensor, families: Mapping[int, Tensor], seed: int) -> Tensor:
    """Return how units and their copies share the original's outgoing weights.

    The shares are drawn for every weight separately. If a unit and its copy had one share each, as
    in Net2Net, their gradients would be multiples of each other. Adam turns those into equal
    updates, so the two would stay copies for ever.

    Args:
        like: the new outgoing weights, of any shape.
        families: dimension -> LongTensor of the dimension's size. Coordinates with equal numbers
            belong to copies of one unit; the numbers are below the size.
        seed: seed of the draw.

    Returns:
        A tensor like `like` of factors that sum to 1 over the copies of each weight. The factor is
        1 for weights without copies.

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


def _is_filled(module: nn.Module, name: str) -> bool:
    """Return whether a tensor is known to be filled; to read that from it makes the host wait.

    Old weight normalisation and pruning replace the weight by other parameters in the same class.
    """
    return type(module) in _FILLING and "weight" in module._parameters and name in _FILLED


def _fill_missing(tensor: Tensor, old: Tensor) -> None:
    missing = tensor.isnan()
    if not missing.any():
        return
    learns, old = old.requires_grad, old.detach()
    if not learns and _is_mask(old):
        drawn = torch.ones_like(tensor)
    elif learns and not _is_ordered(old, tensor.shape):
        at = torch.randint(old.numel(), tensor.shape, device="cpu")
        drawn = old.flatten()[at.to(old.device)]
    else:
        drawn = old
        for dim, (size, wanted) in enumerate(zip(old.shape, tensor.shape, strict=True)):
            if size != wanted:
                at = torch.randint(size, (wanted,), device="cpu")
                drawn = drawn.index_select(dim, at.to(old.device))
    tensor.copy_(torch.where(missing, drawn.to(tensor), tensor))


def _is_mask(values: Tensor) -> bool:
    """Return whether a tensor consists of zeros and ones, of both."""
    zeros = values == 0
    return bool(zeros.any() and not zeros.all() and (zeros | (values == 1)).all())


def _is_ordered(values: Tensor, shape: Sequence[int]) -> bool:
    """Return whether entries increase along a dimension that keeps its size, for all units."""
    return values.is_floating_point() and any(
        size == wanted > 2 and bool((values.diff(dim=dim) > 0).all())
        for dim, (size, wanted) in enumerate(zip(values.shape, shape, strict=True))
    )
