"""Tensors of a network that share memory although they are different objects.

`decoder.weight.data = encoder.weight.data` makes two parameters of one memory: writing to one of
them changes the other. (One parameter under two names is a different case: it is a single object.)
An edit gives every tensor that it resizes memory of its own, which would end the sharing without a
word. So such tensors keep their sizes, and new values are written into their memory.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def sharing_memory(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each tensor that shares memory with another one the name of the other one.

    Parts of one storage that do not overlap, such as the flat weights of recurrent layers on a GPU,
    share no memory in this sense.
    """
    stored: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if type(tensor) in (Tensor, nn.Parameter) and _has_memory(tensor):
            stored[tensor.untyped_storage().data_ptr()].append(name)
    shared: dict[str, str] = {}
    for names in stored.values():
        spans = sorted((*_span(tensors[name]), name) for name in names) if len(names) > 1 else ()
        last = 0
        holder = ""
        for first, end, name in spans:
            if first < last:
                shared[name] = holder
                shared.setdefault(holder, name)
            if end > last:
                last, holder = end, name
    return shared


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and that after its last one."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = first + sum((size - 1) * stride for size, stride in steps)
    return first * tensor.element_size(), (last + 1) * tensor.element_size()
