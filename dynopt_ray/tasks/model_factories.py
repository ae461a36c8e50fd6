"""Functions that make the networks of a task."""

from collections.abc import Callable

from torch import nn

ModelFactory = Callable[[], nn.Module]
"""Makes a new network of the starting size, with weights drawn from torch's generator."""


def check_factory(model: object) -> None:
    """Refuse a model factory that is no function.

    Raises:
        TypeError: it is a network, or cannot be called.
    """
    if isinstance(model, nn.Module) or not callable(model):
        raise TypeError(
            f"model must be a function without arguments that makes a new network, not "
            f"{type(model).__name__}: write model=lambda: MyNetwork(…)"
        )


def made_by(factory: ModelFactory, name: str) -> nn.Module:
    """Return a new network from the factory of the task called `name`.

    Raises:
        TypeError: the factory does not return a module.
    """
    model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model factory of task {name!r} returned {model!r}")
    return model
