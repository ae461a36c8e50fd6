"""Cut one network with compensation, and print one JSON object.

Argument: the name of a case. It runs in its own process, so that the peak memory is that of
compensation, and so that the library may come from another checkout.
"""

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynopt_ray.structure import Shrink, trace
from experiments.benchmarks.llama import Llama
from experiments.benchmarks.networks import SmallViT, resnet20

NUM_BATCHES = 8
WIDTH = 256
NUM_TOKENS = 512

Inputs = list[Tensor]


def main() -> None:
    """Halve every width of a network, and print what compensation took and what it reached."""
    torch.set_num_threads(1)
    cut(layers(2))  # loads what the first cut loads
    print(json.dumps(cut(CASES[sys.argv[1]]())))


def layers(depth: int) -> tuple[nn.Module, Inputs]:
    """Return equal linear layers, and the batches for them."""
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    for layer in parts[::2]:
        nn.init.kaiming_normal_(layer.weight)  # keeps the size of activations
    mix = torch.randn(WIDTH // 4, WIDTH) / (WIDTH // 4) ** 0.5
    return model, [torch.randn(512, WIDTH // 4) @ mix for _ in range(NUM_BATCHES + 1)]


def images(make: Callable[[], nn.Module]) -> tuple[nn.Module, Inputs]:
    """Return a network for images, and smooth random images."""
    torch.manual_seed(0)
    coarse = [torch.randn(128, 1, 7, 7) for _ in range(NUM_BATCHES + 1)]
    return make(), [nn.functional.interpolate(x, scale_factor=4.0) for x in coarse]


def text() -> tuple[nn.Module, Inputs]:
    """Return a decoder of 6 blocks, and random tokens."""
    torch.manual_seed(0)
    model = Llama(
        num_tokens=NUM_TOKENS,
        width=WIDTH,
        num_blocks=6,
        num_heads=8,
        num_key_heads=8,
        hidden=11 * WIDTH // 4,
    )
    return model, [torch.randint(NUM_TOKENS, (8, 128)) for _ in range(NUM_BATCHES + 1)]


CASES: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "6 equal layers": partial(layers, 6),
    "12 equal layers": partial(layers, 12),
    "24 equal layers": partial(layers, 24),
    "ResNet-20": partial(images, resnet20),
    "vision transformer, 12 blocks": partial(images, partial(SmallViT, depth=12)),
    "Llama, 6 blocks": text,
}
"""Name -> makes a network with random weights and its batches. The last batch is held out."""


def cut(case: tuple[nn.Module, Inputs]) -> dict[str, float]:
    """Halve every width with compensation, and return the figures."""
    model, (*batches, held_out) = case
    model.eval()
    graph = trace(model, batches[0])
    plan = [Shrink(group.name, keep=range(group.width // 2)) for group in graph]
    with torch.no_grad():
        wanted = model(held_out)
    plain = copy.deepcopy(model)
    trace(plain, batches[0]).apply(plan)
    calls: list[object] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(None))
    used = _used_bytes()
    start = time.process_time()  # of all threads; other processes do not count
    graph.apply(plan, compensate=batches)
    seconds = time.process_time() - start
    hook.remove()
    return {
        "groups": len(plan),
        "refitted": len(graph.receipts[-1].refitted),
        "passes": len(calls) / len(batches),
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used,
        "error": _error(model, held_out, wanted),
        "error_uncompensated": _error(plain, held_out, wanted),
    }


def _used_bytes() -> int:
    """Return the memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@torch.no_grad()
def _error(model: nn.Module, inputs: Tensor, wanted: Tensor) -> float:
    """Return the mean squared error of the outputs, relative to their variance."""
    return float((model(inputs) - wanted).square().mean() / wanted.var())


if __name__ == "__main__":
    main()
