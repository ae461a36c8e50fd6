"""The batches of inputs that compensation calibrates with."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dynopt_ray.errors import EditError
from dynopt_ray.structure.tracing import Inputs


def calibration_batches(
    compensate: Iterable[Inputs] | Tensor | dict[str, Any] | None,
) -> list[Inputs] | None:
    """Return the network's inputs batch by batch; None if nothing is refitted."""
    if compensate is None:
        return None
    if not isinstance(compensate, Iterable):
        raise EditError(
            f"compensate is {compensate!r}; give batches of inputs, such as "
            "[x for x, _ in loader], or None"
        )
    batches = [compensate] if isinstance(compensate, Tensor | dict) else list(compensate)
    if not batches:
        raise EditError("compensate: there are no batches; pass at least one, or None")
    for number, batch in enumerate(batches):
        if not isinstance(batch, Tensor | tuple | dict):
            raise EditError(
                f"compensate: batch {number} is a {type(batch).__name__}. A batch is the input of "
                "one forward pass, without labels: a tensor, a tuple of arguments or a dict of "
                "keyword arguments; e.g. compensate=[x for x, _ in loader]"
            )
    return batches
