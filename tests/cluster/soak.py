"""A search of real pruning trials, during which processes, nodes and the driver are killed."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dynopt_ray.cluster import Measurement, PruneTrial
from dynopt_ray.tasks import load_task
from dynopt_ray.training import network_bytes
from tests.cluster.drivers import num_measured, records_of, start
from tests.cluster.nodes import Nodes, pid_of

Victim = Literal["process", "node", "driver"]

SPACE: dict[str, Any] = {
    "remove_fraction": {"low": 0.1, "high": 0.7},
    "lr": {"low": 1e-3, "high": 1e-2, "log": True},
}
NETWORK, STEPS = "network.safetensors", "steps"


@dataclass(frozen=True, eq=False)
class CountedPruning(PruneTrial):
    """Pruning trials that note every optimizer step, also those whose process is killed.

    Attributes:
        steps: a file that grows by a byte with every step.
    """

    steps: Path = Path()

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        descriptor = os.open(self.steps, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def count(*_: Any) -> None:
            os.write(descriptor, b".")

        hook = register_optimizer_step_post_hook(count)
        try:
            yield from super().__call__(config, state)
        finally:
            hook.remove()
            os.close(descriptor)


def pruning(folder: Path, *, retrain_steps: int, num_reports: int) -> CountedPruning:
    """Return the trial; its network is trained and kept in the folder once."""
    task, path = load_task("digits-mlp", {"hidden": [32]}), folder / NETWORK
    if not path.exists():
        torch.set_num_threads(1)  # several round otherwise, so drivers would make other networks
        model = task.new_model(seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        task.train_steps(model, optimizer, 200, generator=torch.Generator().manual_seed(0))
        path.write_bytes(network_bytes(model))
    return CountedPruning(
        task,
        path.read_bytes(),
        retrain_steps=retrain_steps,
        num_reports=num_reports,
        steps=folder / STEPS,
    )


@dataclass
class Soak:
    """What happened.

    Attributes:
        kills: number of kills of each kind.
        num_replaced: number of dead nodes that were replaced.
        wall_s: time from the first start to the end, in seconds.
        num_steps: number of optimizer steps in all processes.
    """

    kills: dict[Victim, int] = field(default_factory=dict)
    num_replaced: int = 0
    wall_s: float = 0.0
    num_steps: int = 0


def soak(
    folder: Path,
    nodes: Nodes,
    settings: Mapping[str, Any],
    *,
    victims: Sequence[Victim],
    num_measurements: int,
    seed: int = 0,
    timeout_s: float = 300,
    **trial: Any,
) -> Soak:
    """Run a search to its end, however often it is killed.

    Args:
        folder: for the files.
        nodes: the cluster, whose dead nodes are replaced.
        settings: of the search.
        victims: what is killed, in this order, at random moments.
        num_measurements: about how many the search makes; the last kill comes before the end.
        seed: seed of the moments.
        timeout_s: the time after which the search has failed, in seconds.
        trial: arguments of `pruning`.

    Returns:
        What happened; fewer kills than victims if the search ended early.
    """
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0.02, 0.85) * num_measurements for _ in victims)
    todo = list(zip(moments, victims, strict=True))
    made: dict[str, Any] = {"make": "tests.cluster.soak:pruning", **trial}
    driver_settings = {**settings, "space": SPACE, "address": nodes.address}
    result, begun = Soak(), time.monotonic()
    with nodes.replaced():
        driver = start(folder, driver_settings, **made)
        try:
            while True:
                assert time.monotonic() - begun < timeout_s, "the search does not end"
                time.sleep(chance.uniform(0.02, 0.3))
                if driver.poll() is not None:
                    _, errors = driver.communicate()
                    if driver.returncode == 0:
                        break
                    assert driver.returncode == -signal.SIGKILL, errors[-3000:]
                    driver = start(folder, driver_settings, **made)
                elif todo and num_measured(folder / "run") >= todo[0][0]:
                    victim = todo[0][1]
                    if _killed(victim, driver, nodes, folder, chance):
                        todo.pop(0)
                        result.kills[victim] = result.kills.get(victim, 0) + 1
        finally:
            driver.kill()
    result.wall_s = time.monotonic() - begun
    result.num_replaced = nodes.num_replaced
    result.num_steps = (folder / STEPS).stat().st_size
    return result


def _killed(
    victim: Victim,
    driver: "subprocess.Popen[str]",
    nodes: Nodes,
    folder: Path,
    chance: random.Random,
) -> bool:
    """Kill something, and return whether there was something to kill."""
    if victim == "driver":
        driver.send_signal(signal.SIGKILL)
        return True
    if victim == "node":
        nodes.kill(chance.choice(nodes.workers()))
        return True
    running: dict[int, int] = {}
    for record in records_of(folder / "run"):
        if record.kind == "started":
            running[record["trial"]] = pid_of(record["where"])
        elif record.kind in ("ended", "lost"):
            running.pop(record["trial"], None)
        elif record.kind == "continued":
            running.clear()
    alive = sorted({pid for pid in running.values() if _is_trial(pid)})
    if not alive:
        return False
    os.kill(chance.choice(alive), signal.SIGKILL)
    return True


def _is_trial(pid: int) -> bool:
    """Whether a process is a worker that runs trials. Another may have got its id since."""
    try:
        return b"_TrialActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
