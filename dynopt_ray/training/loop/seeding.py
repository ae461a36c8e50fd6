"""Seeds of everything random, independent of random draws elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.tasks import seeded_torch
from dynopt_ray.training.numbers import whole


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[torch.Generator]:
    """Seed torch's generators inside this context and yield another generator of the same seed.

    Torch's generators decide what layers draw (dropout, new units) and are restored afterwards. The
    yielded generator is for the caller, e.g. for the order of rows.

    Args:
        model: the generators of its devices are seeded, and the CPU's.
        seed: the same seed gives the same draws.

    Raises:
        TypeError: the seed is not a whole number.
        ValueError: the seed is below 0.
    """
    seed = whole("seed", seed, least=0)
    with seeded_torch(seed, _devices(model)):
        yield torch.Generator().manual_seed(seed)


class RandomStream:
    """Torch's generators for one network alone: seeded once, then continued from use to use.

    Within `with stream():` layers draw what they would have drawn if nothing else had used the
    generators since the previous use. Afterwards, the generators are restored.

    Args:
        model: the network; its devices' generators are seeded, and the CPU's.
        seed: the same seed gives the same draws.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._devices = _devices(model)
        with seeded_torch(seed, self._devices):
            self._states = self._read()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Return a context in which torch's generators continue the stream."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the generators."""
        return {"states": [state.clone() for state in self._states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the stream whose `state_dict` this is.

        A network that has moved to a GPU since draws there from the seed again.
        """
        self._states = [*state["states"], *self._states[len(state["states"]) :]][
            : len(self._states)
        ]

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


def _devices(model: nn.Module) -> list[int]:
    """Return the numbers of the CUDA devices of a network."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
