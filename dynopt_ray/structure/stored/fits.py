"""Whether a saved network fits the network that it is loaded into.

Both have the same tensors, but some may have other sizes. A size may differ if units lie along it:
`load` then resizes the network. Sizes that plans have changed are known, in the file and for the
network. Any other size was chosen by a constructor. If it is the width of a hidden layer, a weight
makes the units and a later weight reads them, so both differ. If no later weight reads the units
that a weight makes, they are outputs: the saved network distinguishes other classes, say. If no
earlier weight makes the units that a weight reads, they are inputs. Loading such a file would give
the network another task, so it is refused unless the caller asks for it. Buffers that are not
persistent are tables that the network makes itself, perhaps as long as its longest input so far.
Their sizes come from the file, like the attributes that describe them.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure.stored.names import modules_by_name

End = Literal["input", "output"]
"""An end of a network: the sizes of its inputs, or those of its outputs."""

_PLAIN_LAYERS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def check_fits(
    path: str | os.PathLike[str],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Refuse a file whose tensors have other names, dimensions or kinds of numbers.

    Raises:
        CheckpointError: it does not fit, or has been altered.
    """
    saved = state["tensors"]
    for name in [*(saved.keys() - tensors.keys()), *(tensors.keys() - saved.keys())]:
        where = "file" if name in saved else "network"
        raise CheckpointError(
            f"{path} was saved from a {state['class']} and does not fit this "
            f"{type(model).__qualname__}: only the {where} has {name!r}"
        )
    for name, tensor in tensors.items():
        if saved[name].ndim != tensor.ndim:
            raise CheckpointError(
                f"{path} does not fit: {name!r} has {saved[name].ndim} dimensions in the file and "
                f"{tensor.ndim} in this {type(model).__qualname__}"
            )
        if _numbers(saved[name]) != _numbers(tensor):
            raise CheckpointError(
                f"{path} does not fit: {name!r} has dtype {saved[name].dtype} in the file and "
                f"{tensor.dtype} in this {type(model).__qualname__}"
            )
    for name, keep in state["masks"].items():
        if name not in tensors or keep.dtype != torch.bool or keep.shape != saved[name].shape:
            raise CheckpointError(f"{path} has been altered: its mask {name!r} fits no parameter")


def check_ends(
    path: str | os.PathLike[str],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    *,
    resized: Collection[tuple[str, int]],
    free: Collection[End],
) -> None:
    """Refuse a file whose network has other inputs or outputs.

    Args:
        path: the file.
        model: the network.
        tensors: its parameters and buffers.
        saved: those of the file.
        resized: the (tensor, dimension) pairs that plans have resized in either network.
        free: the ends whose sizes may differ.

    Raises:
        CheckpointError: they differ, and the caller has not asked for it.
    """
    order = {name: place for place, name in enumerate(modules_by_name(model))}
    found = [
        size
        for size in _differing(model, tensors, saved)
        if (size.tensor, size.dim) not in resized and tensors[size.tensor].ndim > 1
    ]
    makers = [order[size.module] for size in found if size.makes]
    readers = [order[size.module] for size in found if size.reads]
    for size in found:
        place = order[size.module]
        read_later = size.makes and any(reader > place for reader in readers)
        made_before = size.reads and any(maker < place for maker in makers)
        if read_later or made_before or not size.ends.isdisjoint(free):
            continue
        old, new = tensors[size.tensor].shape[size.dim], saved[size.tensor].shape[size.dim]
        where = f"{size.tensor!r} has size {new} along dimension {size.dim} in the file"
        if not size.ends:
            raise CheckpointError(
                f"{path} does not fit: {where} and {old} in this network, and no units lie along it"
            )
        ends = " or ".join(sorted(size.ends))
        raise CheckpointError(
            f"{path} does not fit: {where} and {old} in this network. No other layer's size "
            f"differs with it, so it is the size of an {ends}, and the file's network has another "
            f"task. Build the network with the file's size, or pass free={min(size.ends)!r} to "
            "give this network the size in the file"
        )


@dataclass(frozen=True)
class _Size:
    """A size that differs: a dimension of a tensor, its module, and what the dimension may do."""

    tensor: str
    dim: int
    module: str
    makes: bool
    reads: bool
    ends: frozenset[End]


def _differing(
    model: nn.Module, tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> Iterable[_Size]:
    names = {id(tensor): name for name, tensor in tensors.items()}
    for owner, module in modules_by_name(model).items():
        # Weights of two modules (tied embeddings) make units in one and read units in the other.
        passing = module._non_persistent_buffers_set
        lasting = [t for key, t in module._buffers.items() if key not in passing]
        for tensor in (*module._parameters.values(), *lasting):
            name = names.get(id(tensor))
            if tensor is None or name is None:
                continue
            for dim, (old, new) in enumerate(zip(tensor.shape, saved[name].shape, strict=True)):
                if old != new:
                    made, read = _roles(module, dim)
                    ends: set[End] = {"output"} if made else set()
                    ends |= {"input"} if read or isinstance(module, _TABLES) else set()
                    yield _Size(name, dim, owner, made, read, frozenset(ends))


def _roles(module: nn.Module, dim: int) -> tuple[bool, bool]:
    """Return whether a dimension of a module's weight makes units, and whether it reads units."""
    if isinstance(module, _PLAIN_LAYERS):
        return dim == 0, dim > 0
    if isinstance(module, _CONVOLUTIONS):
        return dim == 0, dim == 1
    if isinstance(module, _TRANSPOSED):
        return dim == 1, dim == 0
    if isinstance(module, _TABLES):
        return dim == 1, False
    return True, True


def _numbers(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Return the kind of numbers a tensor holds, whatever their precision."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool
