"""Captured CUDA graphs: they replay operations on the memory that tensors had when captured."""

import torch
from torch import nn

from dynopt_ray.errors import EditError


def check_not_captured(model: nn.Module) -> None:
    """Refuse an edit that a captured graph would not notice.

    A graph that the user's own code captured and replays cannot be found from here.

    Raises:
        EditError: the current stream is being captured, or `torch.cuda.make_graphed_callables`
            has captured a module's passes.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise EditError(
            "an edit cannot be part of a CUDA graph: a replay would repeat its operations on "
            "tensors that are no longer in use. Edit first, then capture"
        )
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if getattr(forward, "__module__", None) == "torch.cuda.graphs":
            raise EditError(
                f"{name or 'the network'} runs as a captured CUDA graph, which would still use "
                "the tensors from before the edit. Edit the network before "
                "torch.cuda.make_graphed_callables, or delete the module's attribute `forward` "
                "and capture it again after the edit"
            )
