"""A population: the parameters of many MLPs of different widths, stacked.

Shapes: P members, I inputs and O outputs of a layer, as many as the widest member has. The units
that a narrower member lacks come last. Their incoming weights, bias and outgoing weights are zero.
ReLU keeps their outputs at zero and their gradients are exactly zero, so training needs no mask for
them.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dynopt_ray.arrays import IntArray
from dynopt_ray.errors import EditError
from dynopt_ray.population.layout import MlpLayout, mlp_layout
from dynopt_ray.structure import mask_of, set_mask
from dynopt_ray.transfers import array_to_device


class Population:
    """Many MLPs of one depth, each with its own widths, trained by SGD with momentum.

    SGD keeps no step count, so members can start over at different times.

    Args:
        template: the network whose depth, inputs, outputs and module names all members share. It
            is not changed. All members start as copies of it.
        num_members: number of members, at least 1.

    Raises:
        EditError: the template is not an MLP of linear layers with ReLU between them.
        ValueError: `num_members` is below 1.

    Attributes:
        layout: the layout of the template.
        widths: (P, hidden layers), the number of units of each member.
        weights: per layer weight_POI, float32.
        biases: per layer bias_PO.
        weight_momenta: per layer, as `weights`.
        bias_momenta: per layer, as `biases`.
        masks: per layer keep_POI, False if a weight is held at zero; None if no member has a mask.
        num_edits: (P,), number of changes of width since a member was loaded. The random weights
            of new units depend on it.
        seeds: (P,), the seeds of the weights of new units.
    """

    def __init__(self, template: nn.Module, num_members: int) -> None:
        layout = mlp_layout(template)
        if layout is None:
            raise EditError(
                f"a {type(template).__name__} cannot be stacked: a population holds "
                "nn.Sequential(Linear, ReLU, …, Linear) with biases"
            )
        if num_members < 1:
            raise ValueError(f"num_members is {num_members}; it must be at least 1")
        self.layout: MlpLayout = layout
        self.widths: IntArray = np.tile(np.array(layout.hidden, dtype=np.int64), (num_members, 1))
        self._template = copy.deepcopy(template)
        linear = [template.get_submodule(name) for name in layout.names]
        device = next(template.parameters()).device
        self.weights = [_zeros(num_members, layer.weight, device) for layer in linear]
        self.biases = [_zeros(num_members, layer.bias, device) for layer in linear]
        self.weight_momenta = [torch.zeros_like(weight) for weight in self.weights]
        self.bias_momenta = [torch.zeros_like(bias) for bias in self.biases]
        self.masks: list[Tensor | None] = [None] * len(linear)
        self.num_edits: IntArray = np.zeros(num_members, dtype=np.int64)
        self.seeds: IntArray = np.zeros(num_members, dtype=np.int64)
        for member in range(num_members):
            self.load(member, template)

    def __len__(self) -> int:
        return len(self.widths)

    @property
    def num_layers(self) -> int:
        """The number of linear layers of each member."""
        return len(self.weights)

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.weights[0].device

    def sizes(self, layer: int) -> tuple[IntArray, IntArray]:
        """Return the numbers of outputs and inputs of a layer, (P,) each."""
        num_members = len(self)
        outputs = np.full(num_members, self.layout.num_outputs)
        inputs = np.full(num_members, self.layout.num_inputs)
        if layer < self.num_layers - 1:
            outputs = self.widths[:, layer]
        if layer > 0:
            inputs = self.widths[:, layer - 1]
        return outputs, inputs

    def places(self, members: Sequence[int] | IntArray) -> Tensor:
        """Return members as an index of the tensors, on their device; the host does not wait."""
        return array_to_device(np.asarray(members, dtype=np.int64), self.device)

    def linear(self, layer: int) -> nn.Linear:
        """Return the template's layer, which defines how new weights are initialised."""
        found = self._template.get_submodule(self.layout.names[layer])
        assert isinstance(found, nn.Linear)
        return found

    def load(self, member: int, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Make a member a copy of a network, including masks and its optimizer's momentum.

        Raises:
            EditError: the network has another depth, inputs or outputs, or the optimizer is not
                plain SGD.
        """
        layout = mlp_layout(model)
        if layout is None or _frame(layout) != _frame(self.layout):
            raise EditError(
                f"the network ({layout or type(model).__name__}) does not fit a population of "
                f"{self.layout}: names, inputs and outputs must agree, only widths may differ"
            )
        if optimizer is not None and type(optimizer) is not SGD:
            raise EditError(
                "a population trains with SGD and cannot use the state of "
                f"{type(optimizer).__name__}. Pass optimizer=None to start momentum at zero"
            )
        self.widths[member] = layout.hidden
        self.num_edits[member] = 0
        self.reserve()
        for layer, name in enumerate(layout.names):
            linear = model.get_submodule(name)
            for stack, momenta, parameter in (
                (self.weights[layer], self.weight_momenta[layer], linear.weight),
                (self.biases[layer], self.bias_momenta[layer], linear.bias),
            ):
                assert isinstance(parameter, nn.Parameter)
                state = {} if optimizer is None else optimizer.state.get(parameter, {})
                _write(stack, member, parameter)
                _write(momenta, member, state.get("momentum_buffer"))
            weight = linear.weight
            assert isinstance(weight, nn.Parameter)
            self.set_mask(layer, member, mask_of(weight))

    def to_module(self, member: int) -> nn.Module:
        """Return a new network that is a copy of a member, including its masks."""
        model = copy.deepcopy(self._template)
        for layer, name in enumerate(self.layout.names):
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            outputs, inputs = (int(size[member]) for size in self.sizes(layer))
            linear.out_features, linear.in_features = outputs, inputs
            # A new size needs new parameters; nothing else refers to those of the copied template.
            linear.weight = nn.Parameter(self.weights[layer][member, :outputs, :inputs].clone())
            linear.bias = nn.Parameter(self.biases[layer][member, :outputs].clone())
            keep = self.masks[layer]
            if keep is not None and not bool(keep[member].all()):
                set_mask(linear.weight, keep[member, :outputs, :inputs].clone())
        return model

    def copy_from(
        self, members: Sequence[int], source: "Population", sources: Sequence[int]
    ) -> None:
        """Replace members by members of another population, including momentum and masks.

        Raises:
            EditError: the populations differ in depth, inputs or outputs.
        """
        if _frame(source.layout) != _frame(self.layout):
            raise EditError(f"members of {source.layout} do not fit a population of {self.layout}")
        to, of = list(members), list(sources)
        self.widths[to] = source.widths[of]
        self.num_edits[to] = source.num_edits[of]
        self.reserve()
        here, there = self.places(to), source.places(of)
        for layer in range(self.num_layers):
            for ours, theirs in zip(self.tensors(layer), source.tensors(layer), strict=True):
                fill_rows(ours, here, theirs[there])
            keep = source.masks[layer]
            if keep is None and self.masks[layer] is None:
                continue
            mask = self.mask(layer)
            if keep is None:
                mask.index_fill_(0, here, True)
            else:
                mask[here] = _fitted(keep[there], mask.shape[1:], fill=True)

    def taken(self, members: Sequence[int] | IntArray) -> "Population":
        """Return a new population of copies of some members, each as often as it is given."""
        chosen, places = list(members), self.places(members)
        taken = copy.copy(self)
        taken.widths, taken.num_edits, taken.seeds = (
            values[chosen] for values in (self.widths, self.num_edits, self.seeds)
        )
        for name in ("weights", "biases", "weight_momenta", "bias_momenta"):
            setattr(taken, name, [stack[places] for stack in getattr(self, name)])
        taken.masks = [None if keep is None else keep[places] for keep in self.masks]
        taken.reserve()
        return taken

    def tensors(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the weights, weight momenta, biases and bias momenta of a layer."""
        return (
            self.weights[layer],
            self.weight_momenta[layer],
            self.biases[layer],
            self.bias_momenta[layer],
        )

    def mask(self, layer: int) -> Tensor:
        """Return the mask of a layer's weights; create it if there is none yet."""
        keep = self.masks[layer]
        if keep is None:
            keep = torch.ones_like(self.weights[layer], dtype=torch.bool)
            self.masks[layer] = keep
        return keep

    def set_mask(self, layer: int, member: int, keep_OI: Tensor | None) -> None:
        """Replace a member's mask of one layer; None removes it. Masked weights become zero."""
        if keep_OI is None:
            stacked = self.masks[layer]
            if stacked is not None:
                stacked[member] = True
            return
        stacked = self.mask(layer)
        stacked[member] = True
        stacked[member, : keep_OI.shape[0], : keep_OI.shape[1]] = keep_OI
        self.weights[layer][member].mul_(stacked[member])
        self.weight_momenta[layer][member].mul_(stacked[member])

    def reserve(self) -> None:
        """Make every tensor exactly as wide as the widest member; wider ones would be slower."""
        wanted = [self.layout.num_inputs, *self.widths.max(0).tolist(), self.layout.num_outputs]
        for layer in range(self.num_layers):
            inputs, outputs = wanted[layer], wanted[layer + 1]
            if self.weights[layer].shape[1:] == (outputs, inputs):
                continue
            self.weights[layer] = _fitted(self.weights[layer], (outputs, inputs))
            self.weight_momenta[layer] = _fitted(self.weight_momenta[layer], (outputs, inputs))
            self.biases[layer] = _fitted(self.biases[layer], (outputs,))
            self.bias_momenta[layer] = _fitted(self.bias_momenta[layer], (outputs,))
            keep = self.masks[layer]
            if keep is not None:
                self.masks[layer] = _fitted(keep, (outputs, inputs), fill=True)


def fill_rows(stack: Tensor, members: Tensor, values: Tensor) -> None:
    """Write members' values into a stack that is at least as wide; fill the rest with zeros."""
    stack[members] = _fitted(values, stack.shape[1:])


def _frame(layout: MlpLayout) -> tuple[tuple[str, ...], int, int]:
    """Return what all members share: layer names, inputs and outputs."""
    return layout.names, layout.num_inputs, layout.num_outputs


def _zeros(num_members: int, parameter: object, device: torch.device) -> Tensor:
    assert isinstance(parameter, Tensor)
    return torch.zeros(num_members, *parameter.shape, dtype=parameter.dtype, device=device)


def _write(stack: Tensor, member: int, value: Tensor | None) -> None:
    stack[member] = 0
    if value is not None:
        stack[member][tuple(slice(size) for size in value.shape)] = value.detach()


def _fitted(stack: Tensor, shape: Sequence[int], fill: bool = False) -> Tensor:
    """Return a stack cut or padded to another width; only padding is cut."""
    if list(stack.shape[1:]) == list(shape):
        return stack
    result = stack.new_full((stack.shape[0], *shape), fill)
    common = tuple(slice(min(a, b)) for a, b in zip(stack.shape[1:], shape, strict=True))
    result[(slice(None), *common)] = stack[(slice(None), *common)]
    return result
