"""What forged files are loaded into: learners, networks, policies, tables and training runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from dynopt_ray.cluster.policy_training.replay import PrioritizedReplay, Step
from dynopt_ray.cluster.policy_training.stored_training import read_training, write_training
from dynopt_ray.errors import CheckpointError, DivergedError
from dynopt_ray.online import DurableLearner, Guard, OnlineLearner, Widen, load, save
from dynopt_ray.policies import DQNPolicy, DuelingNetwork, QTable
from dynopt_ray.structure import Grow, Mask, history_of, trace
from dynopt_ray.structure import load as load_network
from dynopt_ray.structure import save as save_network
from dynopt_ray.training import Hypergradient, Plateau
from tests.online.learners import events, learner, network, state_bytes

SETTINGS = {"num_steps": 100, "hidden": [8, 4]}


class Case(ABC):
    """Something that a file is loaded into."""

    kind: str

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write a good file."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Read a file, into what there is or into something new."""

    def before(self) -> Any:
        """Return all that reading might change: nothing, if it makes something new."""
        return None

    @abstractmethod
    def use(self, read: Any, directory: Path) -> None:
        """Use what was read: it must work."""


def structured() -> OnlineLearner:
    model = network()
    graph = trace(model, torch.zeros(2, 4))
    built = learner(model, structure=graph, reactions=[Widen()], detector="adwin")
    return built


def grown() -> OnlineLearner:
    built = structured()
    built.resize([Grow("0", units=2), Mask("4.weight", keep=torch.eye(3, 8) < 1)])
    return built


def with_controller(kind: Callable[..., Any]) -> OnlineLearner:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return OnlineLearner(model, optimizer, lr=kind(model, optimizer), reactions=["raise_rate"])


LEARNERS: dict[str, tuple[Callable[[], OnlineLearner], Callable[[], OnlineLearner]]] = {
    "plain": (learner, learner),
    "everything": (
        everything := lambda: learner(
            network(dropout=0.3, batch_norm=False),
            optimizer=lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
            detector="ddm",
            guard=Guard(window=8),
            reactions=["raise_rate", "replay"],
        ),
        everything,
    ),
    "structured": (structured, grown),
    "plateau": (
        plateau := lambda: with_controller(lambda m, o: Plateau(m, o, patience=2)),
        plateau,
    ),
    "hypergradient": (
        hyper := lambda: with_controller(lambda _, o: Hypergradient(o, hyper_lr=1e-3)),
        hyper,
    ),
}


class LearnerCase(Case):
    """A learner that has learned something already."""

    kind = "learner"

    def __init__(self, name: str) -> None:
        self.build, self.saved = LEARNERS[name]
        self.subject = self.build()
        taught(self.subject, seed=3)

    def write(self, path: Path) -> None:
        saved = self.saved()
        taught(saved, seed=4)
        save(path, saved)

    def read(self, path: Path) -> OnlineLearner:
        load(path, self.subject)
        return self.subject

    def before(self) -> bytes:
        with TemporaryDirectory() as directory:
            return state_bytes(self.subject, Path(directory))

    def use(self, read: OnlineLearner, directory: Path) -> None:
        taught(read, seed=5)
        state_bytes(read, directory)


def taught(subject: OnlineLearner, *, seed: int) -> None:
    for x, y in events(12, seed=seed):
        try:
            subject.learn(x, y)
        except DivergedError:
            return


class DurableCase(Case):
    """The snapshot in the directory of a durable learner."""

    kind = "durable learner"

    def write(self, path: Path) -> None:
        with TemporaryDirectory() as made, DurableLearner(learner, made) as durable:
            durable.learn(1, [(x.numpy(), y.numpy()) for x, y in events(9)])
            durable.snapshot()
            path.write_bytes((Path(made) / "snapshot.safetensors").read_bytes())
            (path.parent / "journal").write_bytes((Path(made) / "journal").read_bytes())

    def read(self, path: Path) -> None:
        directory = path.parent / "d"
        directory.mkdir(exist_ok=True)
        for file in directory.iterdir():
            file.unlink()
        (directory / "snapshot.safetensors").write_bytes(path.read_bytes())
        (directory / "journal").write_bytes((path.parent / "journal").read_bytes())
        files = [(directory / name) for name in ("snapshot.safetensors", "journal")]
        before = [file.read_bytes() for file in files]
        try:
            with DurableLearner(learner, directory) as durable:
                x, y = events(1)[0]
                durable.learn(durable.sequence + 1, [(x.numpy(), y.numpy())])
        except CheckpointError:
            assert [file.read_bytes() for file in files] == before
            raise

    def use(self, read: Any, directory: Path) -> None:
        """It has learned an event already."""


class NetworkCase(Case):
    """A network and its optimizer, whose class the seed does not choose."""

    kind = "network"

    def __init__(self) -> None:
        self.model = network(seed=1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        stepped(self.model, self.optimizer)

    def write(self, path: Path) -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        graph = trace(model, torch.zeros(2, 4))
        graph.apply([Grow("0", units=2)], optimizer=optimizer)
        graph.apply([Mask("4.weight", keep=torch.eye(3, 8) < 1)], optimizer=optimizer)
        stepped(model, optimizer)
        save_network(path, model, optimizer, metadata={"epoch": 3})

    def read(self, path: Path) -> None:
        load_network(path, self.model, self.optimizer)

    def before(self) -> bytes:
        history = repr(history_of(self.model)).encode()
        with TemporaryDirectory() as directory:
            save_network(Path(directory) / "network", self.model, self.optimizer)
            return (Path(directory) / "network").read_bytes() + history

    def use(self, read: Any, directory: Path) -> None:
        del read
        # Widths that do not fit each other are not known without an input.
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        save_network(directory / "again", self.model, self.optimizer)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


class PolicyCase(Case):
    """A policy that DQN has learned."""

    kind = "policy"

    def write(self, path: Path) -> None:
        torch.manual_seed(0)
        network = DuelingNetwork(5, 3, [16, 8], 4)
        DQNPolicy(network, hidden=[16, 8], head=4, metadata={"task": "digits"}).save(path)

    def read(self, path: Path) -> DQNPolicy:
        return DQNPolicy.load(path)

    def use(self, read: DQNPolicy, directory: Path) -> None:
        observation = np.ones(read.num_features, np.float32)
        assert 0 <= read.act(observation, np.ones(read.num_actions, np.int8)) < read.num_actions
        read.save(directory / "again")


class TableCase(Case):
    """A Q-table."""

    kind = "Q-table"

    def write(self, path: Path) -> None:
        table, mask = QTable({0: [0.5], 2: [0.1, 0.2]}, 2), np.ones(2, np.int8)
        for seed in range(20):
            seen = np.random.default_rng(seed).random(3).astype(np.float32)
            table.learn(seen, seed % 2, 1.0, seen, mask, discount=0.9, terminated=False)
        table.save(path)

    def read(self, path: Path) -> QTable:
        return QTable.load(path)

    def use(self, read: QTable, directory: Path) -> None:
        size = 1 + max(read.edges)
        if size < 1_000:  # any number of features is possible
            seen, mask = np.ones(size, np.float32), np.ones(read.num_actions, np.int8)
            assert 0 <= read.act(seen, mask) < read.num_actions
            read.learn(seen, 0, 1.0, seen, mask, discount=0.9, terminated=False)
        read.save(directory / "again")


class TrainingCase(Case):
    """A training run of a policy: its settings and its replay."""

    kind = "policy training"

    def __init__(self) -> None:
        self.replay = replay(seed=1)

    def write(self, path: Path) -> None:
        write_training(path, {"replay": replay(seed=0).state_dict()}, SETTINGS)

    def read(self, path: Path) -> None:
        state = read_training(path, SETTINGS)
        try:  # as a run does that goes on
            self.replay.load_state_dict(state["replay"])
        except Exception as error:
            raise CheckpointError("refused") from error

    def before(self) -> str:
        return repr(self.replay.state_dict())

    def use(self, read: Any, directory: Path) -> None:
        del read, directory
        rows, columns = self.replay.sample(8)
        assert all(len(column) == 8 for column in columns.values())
        self.replay.update(rows, np.ones(8))


def replay(seed: int) -> PrioritizedReplay:
    made = PrioritizedReplay(
        capacity=16, num_features=3, num_actions=2, n_step=2, discount=0.9, alpha=0.6, beta=0.4,
        seed=seed,
    )  # fmt: skip
    features, mask = np.ones(3, np.float32), np.ones(2, np.int8)
    for step in range(9):
        made.add(
            "a", Step(features, mask, step % 2, 1.0), features, mask, terminated=False,
            truncated=False,
        )  # fmt: skip
    return made


CASES: dict[str, Callable[[], Case]] = {
    **{f"learner, {name}": (lambda name=name: LearnerCase(name)) for name in LEARNERS},  # type: ignore[misc]
    "durable learner": DurableCase,
    "network": NetworkCase,
    "policy": PolicyCase,
    "Q-table": TableCase,
    "training": TrainingCase,
}
