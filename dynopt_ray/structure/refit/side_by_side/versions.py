"""What the modules of a network hold while passes of one of its versions run.

A version of a network has tensors and integer attributes of its own, such as those before a cut and
those after it. A forward pass may also leave things in attributes, in dicts and lists, in buffers
and in the random state, and read them again later. These remains are taken away when a pass pauses
and put back when it continues. So no pass sees anything of another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from dynopt_ray.structure.preserve import RandomState, set_contents


@dataclass(frozen=True, eq=False)
class Remains:
    """What a paused pass needs again when it continues.

    Attributes:
        contents: number of a container -> its contents, where they differ from the version's.
        buffers: number of a buffer -> its values, where the pass has written to it.
        random: the random state.
    """

    contents: Mapping[int, Any]
    buffers: Mapping[int, Tensor]
    random: RandomState


class NetworkVersion:
    """A version of a network. The contents that the containers have now are the version's.

    Args:
        containers: the dicts, lists and sets in which the network keeps things.
        buffers: the buffers of the version.
        devices: one tensor on each device that the network uses.

    Attributes:
        contents: the contents of each container.
    """

    def __init__(
        self, containers: list[Any], buffers: Iterable[Tensor], devices: list[Tensor]
    ) -> None:
        self.contents = [container.copy() for container in containers]
        self._containers = containers
        self._items = [*_items(self.contents)]
        self._lengths = [len(one) for one in self.contents]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self._written = [buffer._version for buffer, _ in self._buffers]
        self._devices = devices

    def unlike(self, other: "NetworkVersion") -> list[int]:
        """Return the numbers of the containers whose contents differ in another version."""
        return _differing(self.contents, other.contents)

    def accept_buffers(self) -> None:
        """Take the values that the buffers have now as the version's."""
        for number, (buffer, kept) in enumerate(self._buffers):
            if buffer._version != self._written[number]:
                kept.copy_(buffer)
                self._written[number] = buffer._version

    def restore_buffers(self) -> None:
        """Give the buffers the version's values again."""
        for number, (buffer, kept) in enumerate(self._buffers):
            if buffer._version != self._written[number]:
                buffer.copy_(kept)
                self._written[number] = buffer._version

    def put_back(self, remains: Remains) -> None:
        """Put back what a pass left when it paused."""
        for number, contents in remains.contents.items():
            set_contents(self._containers[number], contents)
        for number, values in remains.buffers.items():
            self._buffers[number][0].copy_(values)
        remains.random.restore()

    def take_away(self) -> Remains:
        """Take away what a pass has changed, so that the next pass finds the version itself."""
        contents = {number: self._containers[number].copy() for number in self._changed()}
        for number in contents:
            set_contents(self._containers[number], self.contents[number])
        buffers = {
            number: buffer.clone()
            for number, (buffer, _) in enumerate(self._buffers)
            if buffer._version != self._written[number]
        }
        self.restore_buffers()
        return Remains(contents, buffers, RandomState(self._devices))

    def _changed(self) -> list[int]:
        """Return the numbers of the containers that do not hold the same objects as before."""
        # This runs at every pause, so it takes less than a microsecond for each module.
        lengths = [len(one) for one in self._containers]
        if lengths == self._lengths and all(map(is_, _items(self._containers), self._items)):
            return []
        return _differing(self._containers, self.contents)


def _differing(some: Sequence[Any], others: Sequence[Any]) -> list[int]:
    """Return the numbers of the containers that do not hold the same objects in both."""
    return [
        number
        for number, (one, other) in enumerate(zip(some, others, strict=True))
        if len(one) != len(other) or not all(map(is_, _items([one]), _items([other])))
    ]


def _items(containers: Iterable[Any]) -> Iterable[Any]:
    """Return everything that some containers hold, in order."""
    return chain.from_iterable(one.values() if isinstance(one, dict) else one for one in containers)
