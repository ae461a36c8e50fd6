"""What a process may use of the machine that it runs on: cores, GPUs, and a GPU's memory."""

import os

import torch

from dynopt_ray.errors import ClusterError

CONTEXT_BYTES = 600 * 2**20
"""Memory that each process needs on a GPU beside PyTorch's tensors: for its CUDA context and the
kernels that are loaded into it. Between 300 and 550 MiB on the GPUs of the last years."""


def use_resources(cpus: float, gpus: float) -> None:
    """Limit this process to the cores and GPUs that were reserved for it.

    Nothing may have used CUDA in this process before.

    Raises:
        ClusterError: as many processes as share a GPU do not fit into its memory.
    """
    torch.set_num_threads(max(1, int(cpus)))
    if gpus == 0:
        # Ray leaves the variable alone for actors without GPUs, so all would share the first one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus < 1 and torch.cuda.is_available():
        # Ray does not enforce fractions. One process could take the memory of all others.
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total))


def memory_fraction(gpus: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory that the tensors of one process may take.

    Args:
        gpus: the fraction of a GPU that was reserved for the process, below 1.
        total_bytes: the size of the GPU's memory. Of a MIG instance, its own.

    Raises:
        ClusterError: nothing would be left for tensors.
    """
    num_processes = sharing(gpus)
    left = total_bytes - num_processes * CONTEXT_BYTES
    if left <= 0:
        raise ClusterError(
            f"{num_processes} processes share a GPU of {total_bytes / 2**30:.1f} GiB, and each "
            f"needs about {CONTEXT_BYTES / 2**20:.0f} MiB before its first tensor; reserve a "
            "larger fraction of a GPU for each"
        )
    return left / num_processes / total_bytes


def sharing(gpus: float) -> int:
    """Return how many processes share a GPU if each reserves this fraction of one."""
    return int(1 / gpus + 1e-9)


def check_gpus(name: str, gpus: float) -> None:
    """Refuse a number of GPUs that Ray does not hand out.

    Raises:
        ValueError: it is below 0, not finite, or above 1 but no whole number.
    """
    if not 0 <= gpus < float("inf"):
        raise ValueError(f"{name} is {gpus}; it must be at least 0")
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(
            f"{name} is {gpus:g}; Ray reserves a fraction of one GPU, or whole GPUs: give a number "
            "up to 1, or a whole number"
        )
