"""Which device a setting stands for."""

import ast
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dynopt_envs
import dynopt_ray
from dynopt_ray.devices import chosen_device, gpus_granted
from dynopt_ray.errors import DeviceError, DynoptError
from dynopt_ray.tasks import load_task
from tests.gpu.stand_in import StandIn, stand_in

CPU = torch.device("cpu")


def test_auto_is_a_gpu_that_was_granted(gpus: StandIn) -> None:
    assert chosen_device("auto") == torch.device("cuda:0")
    with gpus_granted(False):
        assert chosen_device("auto") == CPU
        with gpus_granted(True):
            assert chosen_device("auto") == torch.device("cuda:0")
        assert chosen_device("auto") == CPU
    torch.cuda.set_device(1)
    assert chosen_device("auto") == chosen_device("cuda") == torch.device("cuda:1")
    assert chosen_device("cuda:0") == torch.device("cuda:0")
    assert gpus.counts.num_waits == 0


def test_auto_is_the_cpu_without_a_gpu() -> None:
    with stand_in(num_devices=0):
        assert chosen_device("auto") == CPU


@pytest.mark.usefixtures("gpus")
def test_auto_is_the_cpu_if_the_gpu_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr("dynopt_ray.devices.torch.zeros", broken)
    with pytest.warns(UserWarning, match="GPU is not used, because it does not work: .* no kernel"):
        assert chosen_device("auto") == CPU


def test_auto_does_not_hide_that_memory_is_exhausted(gpus: StandIn) -> None:
    with gpus.memory_of(0), pytest.raises(torch.OutOfMemoryError):
        chosen_device("auto")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:2", "sees 2 GPUs"),
        ("gpu", "give auto, cpu, cuda"),
        (7.5, "give auto, cpu, cuda"),
        ("mps", "does not have"),
        ("x" * 10_000, "give auto"),
    ],
)
@pytest.mark.usefixtures("gpus")
def test_other_devices_are_refused(device: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        chosen_device(device)
    assert len(str(caught.value)) < 300


def test_cuda_without_a_gpu_is_refused() -> None:
    with stand_in(num_devices=0), pytest.raises(DeviceError, match="sees no GPU; use auto or cpu"):
        load_task({"name": "digits-mlp", "device": "cuda"})
    assert issubclass(DeviceError, DynoptError)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_tasks_take_a_device_by_name(gpu: torch.device, device: str) -> None:
    task = load_task({"name": "digits-mlp", "device": device})
    assert task.device == gpu
    assert task.new_model(seed=0).get_parameter("0.weight").device == gpu
    assert task.to("cpu").device == CPU


FACTORIES = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}


@pytest.mark.parametrize("package", [dynopt_ray, dynopt_envs])
def test_tensors_are_made_on_a_device_that_is_named(package: ModuleType) -> None:
    """Otherwise they would be on the default device, which is up to the user.

    The kits of `testing` are left out: the user's own code makes networks on that device, too.
    """
    root = Path(str(package.__file__)).parent
    files = [path for path in root.rglob("*.py") if path.parent.name != "testing"]
    unnamed = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and makes_tensor(node)
        if all(keyword.arg not in ("device", None) for keyword in node.keywords)
    ]
    assert len(files) > 5
    assert unnamed == []


def makes_tensor(call: ast.Call) -> bool:
    func = call.func
    return (
        isinstance(func, ast.Attribute)
        and func.attr in FACTORIES
        and isinstance(func.value, ast.Name)
        and func.value.id == "torch"
    )
