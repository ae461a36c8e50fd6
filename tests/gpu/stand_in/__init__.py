"""A stand-in for GPUs: everything runs on the CPU, devices and waits are those of CUDA."""

from tests.gpu.stand_in.machine import StandIn, stand_in
from tests.gpu.stand_in.operations import Counts, MixedDevicesError

__all__ = ["Counts", "MixedDevicesError", "StandIn", "stand_in"]
