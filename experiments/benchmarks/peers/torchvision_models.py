"""Resize torchvision's classification models, and print one JSON object per model.

Arguments: `[MODEL …]`.
"""

import sys

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from dynopt_ray.structure import Inputs
from experiments.benchmarks.peers.checks import print_checked

SIZES = {"inception_v3": 299}
"""Model -> size of its images in pixels, if it is not 224."""


def main() -> None:
    """Check the named models, or all of them."""
    print_checked(sys.argv[1:] or list_models(module=torchvision.models), built)


def built(name: str) -> tuple[nn.Module, Inputs]:
    """Return a model, and images for it."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = SIZES.get(name, 224)
    return get_model(name, weights=None, **options), torch.randn(2, 3, size, size)


if __name__ == "__main__":
    main()
