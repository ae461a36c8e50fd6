"""Fewer and more blocks: what passes its input on unchanged can be taken out or put in.

A block is a module that takes a tensor and gives one of the same shape, once per forward pass.
Names never change: a removed block leaves a `Skip` in its place, and an inserted one gets a name
of its own between its neighbours'.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure.transaction import Transaction

_ROUNDING = 1e-5
_Norm = nn.modules.batchnorm._BatchNorm
_Conv = nn.modules.conv._ConvNd


class Skip(nn.Module):
    """What a removed block leaves: it gives its first argument.

    Args:
        num_others: how many further outputs the block had; they are None now. None means that it
            gave a tensor and no tuple.
    """

    def __init__(self, num_others: int | None = None) -> None:
        super().__init__()
        self._num_others = num_others

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return first if self._num_others is None else (first, *(None,) * self._num_others)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a block.

    Attributes:
        args: its arguments; the first is what it may pass on.
        kwargs: its keyword arguments; the first is, where there are no others.
        output: what it gave.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def first(self) -> Any:
        """What a `Skip` would give."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def num_others(self) -> int | None:
        """How many outputs there are beside the first; None for a tensor."""
        return len(self.output) - 1 if isinstance(self.output, tuple) else None

    @property
    def result(self) -> Any:
        """The first output."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    def passes_on(self) -> bool:
        """Whether a tensor goes in and one of the same shape and type comes out."""
        one, other = self.first, self.result
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and one.dtype == other.dtype

    def __call__(self, module: nn.Module, first: Tensor) -> Any:
        """Call a module likewise, on another first argument."""
        if self.args:
            return module(first, *self.args[1:], **self.kwargs)
        return module(**{**self.kwargs, next(iter(self.kwargs)): first})


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two activations are equal but for rounding."""
    scale = other.abs().max() if other.numel() else other.new_ones(())
    return bool(((one - other).abs() <= _ROUNDING * scale.clamp(min=1e-30)).all())


def leave_out(model: nn.Module, name: str, num_others: int | None, log: Transaction) -> nn.Module:
    """Put a `Skip` in a block's place; returns the block."""
    parent, key = _place(model, name)
    block = model.get_submodule(name)
    log.set_attribute(parent, "_modules", {**parent._modules, key: Skip(num_others)})
    return block


def put_in(model: nn.Module, after: str, block: nn.Module, log: Transaction) -> str:
    """Put a block behind another one of the same `nn.Sequential` or `nn.ModuleList`.

    Returns:
        Its name.

    Raises:
        EditError: the other block stands in no such container.
    """
    parent, key = _place(model, after)
    if not isinstance(parent, nn.Sequential | nn.ModuleList):
        raise EditError(
            f"Insert(after={after!r}): it stands in a {type(parent).__name__}, whose forward pass "
            "would not call a new block; only nn.Sequential and nn.ModuleList do"
        )
    taken = parent._modules
    new = next(f"{key}_{n}" for n in range(1, len(taken) + 2) if f"{key}_{n}" not in taken)
    modules: dict[str, nn.Module | None] = {}
    for name, module in taken.items():
        modules[name] = module
        if name == key:
            modules[new] = block
    log.set_attribute(parent, "_modules", modules)
    return f"{after.rpartition('.')[0]}.{new}".lstrip(".")


def copies(model: nn.Module, like: Sequence[str]) -> nn.Module:
    """Copies of some modules as one block."""
    modules = [copy.deepcopy(model.get_submodule(name)) for name in like]
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def silence(block: nn.Module, run: Callable[[], Any], passed_on: Tensor) -> bool:
    """Make a block pass its input on, by as few zeros or ones as possible.

    Its residual branches end in layers that become zero. A block without such branches becomes the
    identity where one linear layer or convolution can be that (Net2DeeperNet, Chen et al. 2016).

    Args:
        block: a copy of a block; its parameters may change.
        run: calls it.
        passed_on: what it is called with.

    Returns:
        Whether it does.
    """

    def identical() -> bool:
        with torch.no_grad():
            out = run()
        out = out[0] if isinstance(out, tuple) else out
        return out.shape == passed_on.shape and same(out, passed_on)

    layers = [[*m.parameters(recurse=False)] for m in _in_order(block, run)]
    held = [[p.detach().clone() for p in layer] for layer in layers]
    _fill(layers, 0.0)
    if identical():
        # As few as possible: of two zeros in a row neither would ever learn.
        for layer, values in zip(layers, held, strict=True):
            _set(layer, values)
            if not identical():
                _fill([layer], 0.0)
        return True
    for layer, values in zip(layers, held, strict=True):
        _set(layer, values)
    return _become_identity(block, passed_on) and identical()


def _in_order(block: nn.Module, run: Callable[[], Any]) -> list[nn.Module]:
    """The modules with parameters of their own, by when they have done their work."""
    done: dict[nn.Module, None] = {}

    def note(module: nn.Module, *_: Any) -> None:
        done.pop(module, None)
        done[module] = None

    owners = [m for m in block.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(note) for m in owners]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return list(done)


def _become_identity(block: nn.Module, passed_on: Tensor) -> bool:
    """One linear layer or convolution becomes the identity, normalisations undo themselves."""
    products = [m for m in block.modules() if isinstance(m, nn.Linear | _Conv)]
    if len(products) != 1:
        return False
    (product,) = products
    with torch.no_grad():
        if isinstance(product, nn.Linear):
            nn.init.eye_(product.weight)
        elif product.in_channels == product.out_channels and not product.transposed:
            nn.init.dirac_(product.weight, groups=product.groups)
        else:
            return False
        if product.bias is not None:
            product.bias.zero_()
        for norm in (m for m in block.modules() if isinstance(m, _Norm)):
            if norm.running_mean is None or norm.running_var is None or not norm.affine:
                return False
            dims = [d for d in range(passed_on.ndim) if d != 1]
            norm.running_mean.copy_(passed_on.mean(dims))
            norm.running_var.copy_(passed_on.var(dims, unbiased=False))
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
    return True


def _fill(layers: Iterable[Sequence[nn.Parameter]], value: float) -> None:
    with torch.no_grad():
        for layer in layers:
            for parameter in layer:
                parameter.fill_(value)


def _set(layer: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(layer, values, strict=True):
            parameter.copy_(value)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a module, and what it calls it."""
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent), key
