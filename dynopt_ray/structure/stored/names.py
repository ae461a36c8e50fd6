"""The names of a network as it was written, without what torch puts around it.

`torch.compile` puts a network or a layer into a module whose child `_orig_mod` is the original.
`DataParallel` and `DistributedDataParallel` put it into their child `module`. Files hold the names
of the original, so they fit it with and without the wrapper.
"""

from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure.tracing import named_tensors

_COMPILED = "_orig_mod"
_PARALLEL = {"DataParallel", "DistributedDataParallel"}
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of wrappers.

    Raises:
        CheckpointError: a part of the network is sharded, so its tensors are not whole here.
    """
    for name, module in model.named_modules():
        if _SHARDED & _kinds(module):
            raise CheckpointError(
                f"module {name!r} is sharded over processes, each of which holds a part of its "
                "weights; save or load the network before it is sharded"
            )
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by the names that they have without `torch.compile`."""
    return {_plain(name): tensor for name, tensor in named_tensors(model).items()}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by the names that they have without `torch.compile`."""
    return {_plain(name): parameter for name, parameter in model.named_parameters()}


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return modules by the names that they have without `torch.compile`, in forward order."""
    return {_plain(name): module for name, module in model.named_modules()}


def _inner(model: nn.Module) -> nn.Module | None:
    return model._modules.get("module" if _PARALLEL & _kinds(model) else _COMPILED)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _kinds(module: nn.Module) -> set[str]:
    return {base.__name__ for base in type(module).__mro__}
