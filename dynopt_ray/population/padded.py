"""Members of a pack: networks that are padded to one of a few fixed sizes, as rows of numbers.

A member of a pack must learn what it would learn alone, to the last bit. So nothing about it may
follow from its neighbours: not its size, and not where its numbers lie. Its size is one of a few
fractions of the widths at the start, the smallest that holds its own. Every dimension is a multiple
of 16 numbers, so that all matrices of a stack begin at multiples of 64 bytes: products of matrices
that are aligned otherwise may be computed in another order, and so round differently.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.population.layout import MlpLayout, mlp_layout
from dynopt_ray.structure import mask_of

_ALIGNED = 16
ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign),
)
"""Nonlinearities of members: f(0) = 0 keeps units that pad at zero."""
_SHARES = (1, 2, 4, 8)
_PLAIN = {"maximize": False, "amsgrad": False, "dampening": 0, "differentiable": False}


@dataclass(frozen=True)
class PaddedSize:
    """The size that a network is padded to.

    Attributes:
        units: the number of inputs, the width of each hidden layer, and the number of outputs, all
            of them rounded up.
    """

    units: tuple[int, ...]

    @staticmethod
    def of(
        layout: MlpLayout, start: MlpLayout, activation: nn.Module | None = None
    ) -> "PaddedSize":
        """Return the smallest size that holds a network.

        Args:
            layout: the network.
            start: the network that it and its neighbours were cut from.
            activation: its nonlinearity; None is ReLU.
        """
        # Nonlinearities are computed in vectors of up to 32 numbers. The numbers that are left at
        # the end of a tensor are computed by other instructions, so there may not be any.
        is_relu = activation is None or isinstance(activation, nn.ReLU)
        multiple = _ALIGNED if is_relu else 2 * _ALIGNED
        for share in reversed(_SHARES):
            hidden = tuple(_rounded_up(-(-width // share), multiple) for width in start.hidden)
            if all(own <= most for own, most in zip(layout.hidden, hidden, strict=True)):
                break
        else:  # it has grown
            hidden = tuple(_rounded_up(width, multiple) for width in layout.hidden)
        return PaddedSize(
            (_rounded_up(layout.num_inputs), *hidden, _rounded_up(layout.num_outputs))
        )

    @cached_property
    def layers(self) -> tuple[tuple[slice, slice, int, int], ...]:
        """Of each layer: where its weights and its biases are in a row, its outputs, its inputs."""
        layers, end = [], 0
        for inputs, outputs in zip(self.units[:-1], self.units[1:], strict=True):
            weights = slice(end, end + outputs * inputs)
            end = weights.stop + outputs
            layers.append((weights, slice(weights.stop, end), outputs, inputs))
        return tuple(layers)

    @property
    def length(self) -> int:
        """The number of numbers in a row."""
        return int(self.layers[-1][1].stop)

    def weights(self, rows: Tensor, layer: int) -> Tensor:
        """Return a layer's part of rows, (P, length), as a view (P, O, I)."""
        where, _, outputs, inputs = self.layers[layer]
        return rows[:, where].view(len(rows), outputs, inputs)

    def biases(self, rows: Tensor, layer: int) -> Tensor:
        """Return a layer's biases in rows, (P, length), as a view (P, O)."""
        return rows[:, self.layers[layer][1]]


@dataclass(frozen=True)
class StepRule:
    """An optimizer without its state and its learning rate.

    Attributes:
        name: "sgd", "adam" or "adamw".
        momentum: of SGD.
        nesterov: of SGD.
        betas: of Adam and AdamW.
        eps: of Adam and AdamW.
        weight_decay: added to the gradient; with AdamW taken from the weights.
    """

    name: str
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0
    weight_decay: float = 0.0

    @staticmethod
    def of(optimizer: Optimizer) -> "StepRule":
        """Return the rule of a torch optimizer.

        Raises:
            EditError: packs have no such optimizer, or not with this argument.
        """
        if type(optimizer) not in (SGD, Adam, torch.optim.AdamW):
            raise EditError(
                f"{type(optimizer).__name__} cannot train a pack; use sgd, adam or adamw"
            )
        if len(optimizer.param_groups) != 1:
            raise EditError("an optimizer with several groups of parameters cannot train a pack")
        (group,) = optimizer.param_groups
        for name, plain in _PLAIN.items():
            if group.get(name, plain) != plain:
                raise EditError(
                    f"{type(optimizer).__name__} with {name}={group[name]} cannot train a pack; "
                    f"leave out {name}"
                )
        decay = float(group["weight_decay"])
        if isinstance(optimizer, SGD):
            momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
            return StepRule("sgd", momentum, nesterov, weight_decay=decay)
        name = "adamw" if group.get("decoupled_weight_decay") else "adam"
        first, second = map(float, group["betas"])
        return StepRule(name, betas=(first, second), eps=float(group["eps"]), weight_decay=decay)

    @property
    def kind(self) -> tuple[str, bool, bool, bool]:
        """What members that are trained together must share."""
        return self.name, self.momentum != 0, self.nesterov, self.weight_decay != 0

    @property
    def moments(self) -> tuple[str, ...]:
        """The names under which torch's optimizer keeps its state of each parameter."""
        if self.name == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq")


@dataclass(eq=False)
class PaddedMember:
    """A network and its optimizer in the form in which packs train them.

    Attributes:
        layout: the network's own layout.
        activation: its nonlinearity.
        size: the size that it is padded to.
        rule: the optimizer.
        values: its weights and biases, (length,); those of padded units are zero.
        moments: the optimizer's state, (moments, length).
        keep: 1 for each number that is trained and 0 for those that a mask holds at zero,
            (length,); None if there is no mask.
        num_steps: the number of steps that the optimizer has taken, as Adam counts them.
    """

    layout: MlpLayout
    activation: nn.Module
    size: PaddedSize
    rule: StepRule
    values: Tensor
    moments: Tensor
    keep: Tensor | None
    num_steps: int

    @staticmethod
    def of(model: nn.Module, optimizer: Optimizer, start: MlpLayout) -> "PaddedMember":
        """Copy a network, its masks, and the state of its optimizer.

        Raises:
            EditError: the network or the optimizer cannot be part of a pack.
        """
        layout, rule = checked_layout(model), StepRule.of(optimizer)
        activation = _activation(model)
        size = PaddedSize.of(layout, start, activation)
        like = next(model.parameters())
        values = torch.zeros(1, size.length, dtype=like.dtype, device=like.device)
        moments = values.new_zeros(len(rule.moments), size.length)
        keep = torch.ones_like(values)
        num_steps, has_mask = 0, False
        for layer, parameters in enumerate(_parameters(model, layout)):
            for parameter, view in zip(parameters, _views(size, layer, values), strict=True):
                _copy_into(view, parameter)
            for index, parameter in enumerate(parameters):
                state: Mapping[str, Any] = optimizer.state.get(parameter, {})
                num_steps = max(num_steps, int(state.get("step", 0)))
                for number, name in enumerate(rule.moments):
                    found = state.get(name)
                    if found is not None:
                        row = moments[number : number + 1]
                        _copy_into(_views(size, layer, row)[index], found)
                mask = mask_of(parameter)
                if mask is not None:
                    has_mask = True
                    _copy_into(_views(size, layer, keep)[index], mask.to(keep.dtype))
        kept = keep[0] if has_mask else None
        return PaddedMember(layout, activation, size, rule, values[0], moments, kept, num_steps)

    def write_to(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy everything back into the network and the optimizer that it was made of."""
        has_state = bool(self.rule.moments) and (self.num_steps > 0 or bool(self.moments.any()))
        for layer, parameters in enumerate(_parameters(model, self.layout)):
            views = _views(self.size, layer, self.values[None])
            for index, parameter in enumerate(parameters):
                with torch.no_grad():
                    parameter.copy_(_cut(views[index], parameter))
                state: dict[str, Any] = {}
                for number, name in enumerate(self.rule.moments):
                    row = self.moments[number : number + 1]
                    found = _cut(_views(self.size, layer, row)[index], parameter)
                    state[name] = found.clone()
                if self.rule.name != "sgd":
                    state["step"] = torch.tensor(float(self.num_steps), device="cpu")
                if has_state:
                    optimizer.state[parameter] = state

    @property
    def stack(self) -> tuple[PaddedSize, tuple[str, bool, bool, bool], str]:
        """What members that are trained together must share."""
        return self.size, self.rule.kind, repr(self.activation)


def checked_layout(model: nn.Module) -> MlpLayout:
    """Return the layout of a network that can be part of a pack.

    Raises:
        EditError: the network is no MLP of linear layers with one of a few nonlinearities between
            them, or is not float32.
    """
    layout = mlp_layout(model, ACTIVATIONS)
    if layout is None:
        raise EditError(
            f"a {type(model).__name__} of this structure cannot be trained in a pack: members are "
            "nn.Sequential(Linear, ReLU, …, Linear) with biases (or with GELU, SiLU, Tanh, … in "
            "place of ReLU). Others gain too little: through torch.func, 16 CNNs of equal widths "
            "on 28x28 pixels took 1.3 times as long together as one after the other"
        )
    if len({repr(layer) for layer in list(model.children())[1::2]}) > 1:
        raise EditError("a network with several nonlinearities cannot be trained in a pack")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        raise EditError(f"a network of {', '.join(map(str, dtypes))} cannot be trained in a pack")
    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise EditError("a network with frozen parameters cannot be trained in a pack")
    return layout


def _activation(model: nn.Module) -> nn.Module:
    """Return a nonlinearity like those of a network, which does not write into its input."""
    activation: Any = copy.deepcopy(list(model.children())[1])
    if hasattr(activation, "inplace"):
        activation.inplace = False
    made: nn.Module = activation
    return made


def padded_inputs(x_NI: Tensor) -> Tensor:
    """Return inputs with columns of zeros, as many as members of packs have inputs."""
    return nn.functional.pad(x_NI, (0, _rounded_up(x_NI.shape[1]) - x_NI.shape[1]))


def _rounded_up(width: int, multiple: int | None = None) -> int:
    multiple = multiple or _ALIGNED
    return -(-width // multiple) * multiple


def _parameters(model: nn.Module, layout: MlpLayout) -> list[tuple[Tensor, Tensor]]:
    layers = [model.get_submodule(name) for name in layout.names]
    return [(layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in layers]


def _views(size: PaddedSize, layer: int, rows: Tensor) -> Sequence[Tensor]:
    """Return a layer's weights (O, I) and biases (O,) in the only one of some rows."""
    return size.weights(rows, layer)[0], size.biases(rows, layer)[0]


def _cut(padded: Tensor, like: Tensor) -> Tensor:
    return padded[tuple(slice(length) for length in like.shape)]


def _copy_into(padded: Tensor, value: Tensor) -> None:
    _cut(padded, value).copy_(value.detach())
