"""The layout of networks that can be stacked: linear layers with ReLU between them."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class MlpLayout:
    """The layers of an MLP, without their weights.

    Attributes:
        names: dotted names of the linear layers in order; all but the last produce a width group
            of the same name.
        num_inputs: number of columns of the input.
        hidden: the width of each hidden layer.
        num_outputs: number of columns of the output.
    """

    names: tuple[str, ...]
    num_inputs: int
    hidden: tuple[int, ...]
    num_outputs: int


def mlp_layout(
    model: nn.Module, activations: tuple[type[nn.Module], ...] = (nn.ReLU,)
) -> MlpLayout | None:
    """Return the layout of `nn.Sequential(Linear, ReLU, …, Linear)`, or None for other networks.

    Every linear layer must have a bias, and at least one hidden layer is needed. Units that a
    member lacks are zeros in the stack, and only a nonlinearity with f(0) = 0 keeps them at zero.

    Args:
        model: any network.
        activations: the nonlinearities that may be in the place of ReLU.
    """
    if type(model) is not nn.Sequential or len(model) < 3 or len(model) % 2 == 0:
        return None
    named = list(model.named_children())
    linear = [(name, layer) for name, layer in named[::2] if isinstance(layer, nn.Linear)]
    if len(linear) < len(named[::2]) or any(layer.bias is None for _, layer in linear):
        return None
    if not all(type(layer) in activations for _, layer in named[1::2]):
        return None
    return MlpLayout(
        names=tuple(name for name, _ in linear),
        num_inputs=linear[0][1].in_features,
        hidden=tuple(layer.out_features for _, layer in linear[:-1]),
        num_outputs=linear[-1][1].out_features,
    )
