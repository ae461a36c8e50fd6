"""Runs compute on the device and with the precision of their spec."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dynopt_ray.devices import Determinism, computing
from dynopt_ray.errors import DeviceError, SpecError, UnknownNameError
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.kinds.registry import prepare
from dynopt_ray.runs.loading import check_spec, spec_text
from dynopt_ray.runs.progress import Silent
from dynopt_ray.runs.run import Run, carry_out
from dynopt_ray.tasks import load_task
from tests.gpu.stand_in import StandIn, stand_in

BASE: dict[str, Any] = {
    "num_threads": 1,
    "task": {"name": "digits-mlp", "hidden": [12]},
    "train": {"num_steps": 40, "lr": 0.01},
}
KINDS: dict[str, dict[str, Any]] = {
    "prune": {"prune": {"target": {"remove": 0.5}, "retrain": {"num_steps": 10, "lr": 0.01}}},
    "search": {
        "search": {
            "num_trials": 2,
            "searcher": "random",
            "retrain_steps": 8,
            "num_reports": 2,
            "local": True,
            "gpus_per_trial": 1,
            "find_rate": True,
        },
        "space": {"remove_fraction": [0.3, 0.6], "lr": {"low": 1e-3, "high": 0.1, "log": True}},
    },
    "adapt": {
        "policy": "useless_shrinking",
        "adapt": {"horizon": 2, "train_steps": 4},
    },
    "stream": {
        "stream": {"num_events": 40, "window": 20},
        "learner": {"local": True, "reactions": ["replay"]},
    },
}


def run(data: dict[str, Any], path: Path) -> RunDirectory:
    spec = check_spec(data, source="test")
    action = prepare(spec)
    directory = RunDirectory.create(
        path, spec_text=spec_text(spec), about={"spec": "test", "kind": spec.kind, "seed": 0}
    )
    carry_out(action, Run.of(spec, directory, Silent()))
    return RunDirectory.open(path)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_use_the_gpu_if_there_is_one(gpu: torch.device, kind: str, tmp_path: Path) -> None:
    spec = {**BASE, "kind": kind, **KINDS[kind]}
    assert prepare_task_device(spec) == gpu
    directory = run(spec, tmp_path / "run")
    assert directory.manifest["status"] == "finished"
    on_cpu = run({**spec, "device": "cpu"}, tmp_path / "cpu")
    assert on_cpu.manifest["status"] == "finished"


def prepare_task_device(spec: dict[str, Any]) -> torch.device:
    from dynopt_ray.runs.origin import prepare_origin

    checked: Any = check_spec(spec, source="test")
    return prepare_origin(checked).task.device


def test_work_of_a_run_is_done_on_the_gpu(gpus: StandIn, tmp_path: Path) -> None:
    spec = {**BASE, "kind": "prune", **KINDS["prune"]}
    gpus.counts.reset()
    run({**spec, "device": "cpu"}, tmp_path / "cpu")
    assert gpus.counts.operations == 0
    run(spec, tmp_path / "gpu")
    assert gpus.counts.operations > 1_000


def test_a_device_of_the_task_itself_is_kept(gpu: torch.device) -> None:
    spec = {**BASE, "kind": "prune", **KINDS["prune"]}
    task = {**spec["task"], "device": "cpu"}
    assert prepare_task_device({**spec, "task": task}).type == "cpu"
    assert prepare_task_device({**spec, "task": task, "device": "cuda"}) == gpu


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"device": "gpu"}, "device: must be auto, cpu, cuda"),
        ({"device": 7}, "device"),
        ({"precision": "fp16"}, "precision"),
        ({"deterministic": "yes"}, "deterministic"),
    ],
)
def test_other_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec({**BASE, "kind": "prune", **KINDS["prune"], **setting}, source="test")


def test_a_gpu_that_is_missing_is_noticed_before_the_run() -> None:
    spec = check_spec({**BASE, "kind": "prune", **KINDS["prune"], "device": "cuda"}, source="test")
    with stand_in(num_devices=0), pytest.raises(DeviceError, match="sees no GPU"):
        prepare(spec)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_networks_learn_with_every_precision(gpu: torch.device, precision: Any) -> None:
    seen = set()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    task = load_task({"name": "digits-mlp", "hidden": [16]}).to(gpu, precision)
    model = task.new_model(seed=0)

    def look(*_: object) -> None:
        kind = torch.get_autocast_dtype("cpu") if precision == "bf16" else None
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, kind))

    model.register_forward_hook(look)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task.train_steps(model, optimizer, 100)
    assert task.evaluate(model).metric > 0.7
    scores = task.row_scores(model)
    assert scores is not None
    assert scores.isfinite().all()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    expected = {
        "float32": ("highest", False, None),
        "tf32": ("high", True, None),
        "bf16": (*before, torch.bfloat16),
    }
    assert seen == {expected[precision]}
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_bf16_computes_in_bf16(gpu: torch.device) -> None:
    for device in (gpu, torch.device("cpu")):
        x = torch.randn(4, 4, device=device)
        with computing(device, "bf16"):
            assert (x @ x).dtype == torch.bfloat16
        with computing(device, None):
            assert (x @ x).dtype == torch.float32


def test_a_precision_is_kept_and_checked() -> None:
    task = load_task("digits-mlp").to("cpu", "bf16")
    assert task.to("cpu").precision == "bf16"
    unknown: Any = "fp8"
    with pytest.raises(UnknownNameError, match="no precision 'fp8'"):
        task.to("cpu", unknown)


def test_determinism_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with Determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    with Determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.cuda
def test_the_same_seed_gives_the_same_bits_on_a_gpu() -> None:
    def trained() -> torch.Tensor:
        task = load_task({"name": "digits-cnn", "device": "cuda"})
        model = task.new_model(seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        task.train_steps(model, optimizer, 50, generator=generator)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    with Determinism(True):
        assert torch.equal(trained(), trained())
