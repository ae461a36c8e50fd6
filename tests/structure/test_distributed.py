"""Data-parallel training: rank 0 plans, all ranks apply, wrap again and stay identical."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dynopt_ray.errors import TraceError
from dynopt_ray.structure import (
    Edit,
    Graph,
    Grow,
    Mask,
    Shrink,
    mask_of,
    plan_from_json,
    plan_to_json,
    trace,
)
from tests.structure.zoo import NETWORKS

RANKS = 2


def train(model: nn.Module, optimizer: Optimizer) -> None:
    """Two steps, on data that differ from rank to rank."""
    for _ in range(2):
        optimizer.zero_grad()
        model(NETWORKS["resnet"].inputs()).square().mean().backward()
        optimizer.step()


def plan_of_rank_0(rank: int, graph: Graph) -> list[Edit]:
    """The plan that rank 0 makes, on every rank."""
    text: list[Any] = [None]
    if rank == 0:
        weight = graph.model.get_parameter("2.conv2.weight")
        plan: list[Edit] = [
            Mask("2.conv2.weight", keep=weight > weight.median()),
            Shrink("1.conv1", remove=[1, 2]),
            Grow("0", units=3),
        ]
        text = [plan_to_json(plan)]
    dist.broadcast_object_list(text, src=0)
    return plan_from_json(text[0])


def work(rank: int, directory: str) -> None:
    """What each process does; leaves what it has at the end in a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.manual_seed(rank)
    model, inputs = NETWORKS["resnet"].build(), NETWORKS["resnet"].inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    wrapped = DistributedDataParallel(model)
    train(wrapped, optimizer)
    with pytest.raises(TraceError, match=r"wrapped in DistributedDataParallel.*\(\.module\)"):
        trace(wrapped, inputs)

    graph = trace(model, inputs)
    plan = plan_of_rank_0(rank, graph)
    graph.apply(plan, optimizer=optimizer, compensate=inputs, seed=7)
    again = DistributedDataParallel(model)
    train(again, optimizer)
    # Not the statistics of normalisations: each rank's own, until the next pass begins.
    tensors: dict[str, Any] = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        tensors[f"grad {name}"] = parameter.grad
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key} {name}"] = value
        tensors[f"mask {name}"] = mask_of(parameter)
    torch.save(tensors, Path(directory) / f"rank{rank}")
    graph.apply([Grow("0", units=1)], optimizer=optimizer, seed=8)
    with pytest.raises(
        RuntimeError, match="finished reduction"
    ):  # what wraps the old sizes notices
        train(again, optimizer)
    sharded = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (RANKS,)))
    whole: Any = FullyShardedDataParallel
    kind: Any
    for kind in (sharded, whole(nn.Linear(4, 4), device_id=torch.device("cpu"))):
        with pytest.raises(TraceError, match=r"wrapped in F.* before it is sharded"):
            trace(kind, torch.randn(2, 4))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_stay_identical(tmp_path: Path) -> None:
    start: Any = spawn
    start(work, (str(tmp_path),), nprocs=RANKS)
    one, other = (torch.load(tmp_path / f"rank{rank}") for rank in range(RANKS))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value is other[name] is None
    assert one["0.weight"].shape[0] == 9
    assert one["mask 2.conv2.weight"] is not None
