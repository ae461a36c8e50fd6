"""Resize torchvision's classification models: `[MODEL …]`, prints one JSON object per model."""

import sys

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from dynopt_ray.structure import Inputs
from experiments.benchmarks.peers.checks import print_checked

SIZES = {"inception_v3": 299}
"""Sizes of images other than 224."""


def main() -> None:
    """Check all models, or those named."""
    print_checked(sys.argv[1:] or list_models(module=torchvision.models), built)


def built(name: str) -> tuple[nn.Module, Inputs]:
    """One model and images for it."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = SIZES.get(name, 224)
    return get_model(name, weights=None, **options), torch.randn(2, 3, size, size)


if __name__ == "__main__":
    main()
