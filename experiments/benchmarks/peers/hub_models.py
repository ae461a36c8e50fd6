"""Resize networks of timm and Hugging Face: `[NAME …]`, prints one JSON object per network.

A name is one of timm's, or one in `transformer_models.MODELS`, followed by `:eager` or `:sdpa`.
Weights are random: nothing is downloaded.
"""

import sys

import timm
import torch
from torch import nn

from dynopt_ray.structure.forward import Inputs
from experiments.benchmarks.peers import transformer_models
from experiments.benchmarks.peers.checks import print_checked


def main() -> None:
    """Check the networks named, or all of Hugging Face's."""
    print_checked(sys.argv[1:] or transformer_models.names(), built)


def built(name: str) -> tuple[nn.Module, Inputs]:
    """One network and what it is called with."""
    model, _, attention = name.partition(":")
    if model in transformer_models.MODELS:
        return transformer_models.built(model, attention)
    network = timm.create_model(name, pretrained=False, num_classes=10)
    return network, torch.randn(2, *network.default_cfg["input_size"])


if __name__ == "__main__":
    main()
