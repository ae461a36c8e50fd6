"""Forward passes of several versions of a network that take turns on all batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

import torch
from torch import Tensor, nn

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import EditError
from dynopt_ray.structure.preserve import RandomState, ThreadState, containers_of, set_contents
from dynopt_ray.structure.refit.side_by_side.pausing import Pausable, Value
from dynopt_ray.structure.refit.side_by_side.versions import NetworkVersion, Remains
from dynopt_ray.structure.tracing import Inputs, named_tensors, on_device
from dynopt_ray.structure.units import Attribute, attributes_changed

# Each thread that calls operations of torch may get as many further threads as torch uses. This
# bounds their total.
_MOST_WORKERS = 256

RunPass = Callable[[nn.Module, Inputs, Pausable[Any]], None]
"""Runs a network on a batch, and pauses where it has to wait."""


class NetworkPass(Generic[Value]):
    """One forward pass that can pause.

    Args:
        version: the version of the network that it runs.
        number: the number of the batch.
        pausable: runs the pass.
        random: the random state with which it starts.

    Attributes:
        remains: what it left in the network when it paused.
        value: what it passed to `pause`; None at its start and at its end.
    """

    def __init__(
        self, version: NetworkVersion, number: int, pausable: Pausable[Value], random: RandomState
    ) -> None:
        self.version = version
        self.number = number
        self.pausable = pausable
        self.remains = Remains({}, {}, random)
        self.value: Value | None = None

    @property
    def ended(self) -> bool:
        """Whether it has reached its end."""
        return self.pausable.ended


class Turns:
    """Lets forward passes run in turns.

    On exit it stops them all and restores what they changed in the network. Use it through
    `within`, inside `undisturbed`.

    Args:
        model: the network.
        batches: its inputs.

    Attributes:
        num_batches: the number of batches.
        original: the network as it is.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        self.num_batches = len(batches)
        self._model = model
        self._batches = batches
        tensors = named_tensors(model)
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._device = next((t.device for t in tensors.values()), torch.device("cpu"))
        self._devices = [*{tensor.device: tensor for tensor in tensors.values()}.values()]
        self._containers = containers_of(model)
        self._settings = ThreadState()
        self._random = RandomState(self._devices)
        self._num_workers = torch.get_num_threads()
        self._most_workers = max(1, _MOST_WORKERS // len(batches))
        self._pausables: list[Pausable[Any]] = []
        # Version -> the containers whose contents differ from those in the original.
        self._own: dict[NetworkVersion, list[int]] = {}
        self._buffers = [name for name, _ in model.named_buffers()]
        self.original = self._version_now(tensors)
        self._current = self.original

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        for pausable in self._pausables:
            pausable.stop()
        for version in self._own:
            version.restore_buffers()
        for live, kept in zip(self._containers, self.original.contents, strict=True):
            set_contents(live, kept)
        if self._most_workers < self._num_workers:
            torch.set_num_threads(self._num_workers)

    def version(
        self,
        tensors: Mapping[str, Tensor],
        attributes: Sequence[Attribute],
        added: Mapping[str, int],
    ) -> NetworkVersion:
        """Return a version with other tensors, and with attributes for other widths.

        Args:
            tensors: the parameters and buffers by name.
            attributes: the attributes that follow the widths.
            added: group name -> number of units more than in the network.
        """
        with attributes_changed(self._model, attributes, added):
            for module in self._model.modules():
                for registered in (module._parameters, module._buffers):
                    self._replace(registered, tensors)
            version = self._current = self._version_now(tensors)
        self._switch_to(self.original)
        return version

    def _replace(self, registered: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in registered.items():
            if tensor is not None:
                registered[key] = tensors[self._names[id(tensor)]]

    def begin(self, version: NetworkVersion, number: int, run: RunPass) -> NetworkPass[Any]:
        """Return a pass that is paused at its start.

        Args:
            version: the version of the network to run.
            number: the number of the batch.
            run: runs the pass.
        """

        def body(pausable: Pausable[Any]) -> None:
            if torch.get_num_threads() > self._most_workers:
                torch.set_num_threads(self._most_workers)
            run(self._model, on_device(self._batches[number], self._device), pausable)

        pausable: Pausable[Any] = Pausable(body, self._settings)
        self._pausables.append(pausable)
        return NetworkPass(version, number, pausable, self._random)

    def resume(self, one: NetworkPass[Value]) -> Value | None:
        """Continue a pass until it pauses, and return what it passes to `pause`; None at its end.

        Raises:
            EditError: the network does not run on the batch.
        """
        self._switch_to(one.version)
        one.version.put_back(one.remains)
        try:
            one.value = one.pausable.resume()
        except EditError:
            raise
        except OF_THE_MACHINE:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise EditError(
                f"compensate: the network does not run on batch {one.number}: {error}. Pass a list "
                "of batches, each of them the input of one forward pass"
            ) from error
        one.remains = one.version.take_away()
        return one.value

    def _version_now(self, tensors: Mapping[str, Tensor]) -> NetworkVersion:
        buffers = [tensors[name] for name in self._buffers]
        version = NetworkVersion(self._containers, buffers, self._devices)
        self._own[version] = version.unlike(self.original) if self._own else []
        return version

    def _switch_to(self, version: NetworkVersion) -> None:
        if version is not self._current:
            # What differs between the two differs from the original in one of them.
            for number in {*self._own[self._current], *self._own[version]}:
                set_contents(self._containers[number], version.contents[number])
            self._current = version
