"""Blocks come and go: exactly, with their optimizers, undone bit for bit, saved and loaded."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, EditError, UnknownNameError
from dynopt_ray.structure import (
    Edit,
    Grow,
    Insert,
    Mask,
    Remove,
    Shrink,
    history_of,
    load,
    mask_of,
    plan_from_json,
    plan_to_json,
    save,
    trace,
)
from tests.structure.editing import OPTIMIZERS, assert_same, everything, step


class Block(nn.Module):
    """A pre-normalised transformer block with a second argument."""

    def __init__(self, *, tuples: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.tuples = tuples

    def forward(self, x: Tensor, shift: Tensor) -> Any:
        q, k, v = self.qkv(self.norm(x) + shift).unflatten(-1, (-1, 4)).transpose(1, 2).chunk(3, 1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return (x, shift) if self.tuples else x


class Transformer(nn.Module):
    def __init__(self, *, tuples: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(tuples=tuples) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, shift=x.mean(-1, keepdim=True))
            x = x[0] if isinstance(x, tuple) else x
        out: Tensor = self.head(x.mean(1))
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    stage = nn.Sequential(Residual(), Residual())
    return nn.Sequential(*stem, stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def mlp() -> nn.Module:
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers)


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 36, 4)),
    )


def parametrised() -> nn.Module:
    """Residual branches that end in a vector of their own."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.scale = nn.Parameter(torch.full((8,), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * torch.tanh(self.layer(x))

    return nn.Sequential(nn.Linear(5, 8), Scaled(), Scaled(), nn.Linear(8, 4))


# name -> what makes the network, its inputs, an insertion, the new block's name
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Insert, str]] = {
    "transformer": (Transformer, (3, 7, 5), Insert("blocks.1"), "blocks.1_1"),
    "tuples": (lambda: Transformer(tuples=True), (3, 7, 5), Insert("blocks.2"), "blocks.2_1"),
    "resnet": (resnet, (3, 3, 8, 8), Insert("3.0", like="3.1"), "3.0_1"),
    "mlp": (mlp, (3, 5), Insert("3", like=["2", "3"]), "3_1"),
    "vgg": (vgg, (3, 3, 8, 8), Insert("5", like=("3", "4", "5")), "5_1"),
    "parametrised": (parametrised, (3, 5), Insert("1"), "1_1"),
}


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Insert]:
    torch.manual_seed(0)
    make, shape, insert, _ = CASES[name]
    model = make().to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            low = {"running_mean": -0.2, "running_var": 0.5}
            for buffer, tensor in module.named_buffers():
                if buffer in low:
                    tensor.uniform_(low[buffer], low[buffer] + 0.4)
    return model, torch.randn(shape, dtype=dtype), insert


@pytest.mark.parametrize("name", CASES)
def test_inserted_blocks_change_nothing_and_learn(name: str) -> None:
    model, inputs, insert = prepared(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model(inputs)
    graph = trace(model, inputs)
    receipt = graph.apply([insert], optimizer=optimizer)
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)
    assert receipt.after.params > receipt.before.params
    block = model.get_submodule(CASES[name][3])
    for _ in range(2):
        step(model, inputs, optimizer)
    gradients = {n: p.grad for n, p in block.named_parameters()}
    idle = [n for n, g in gradients.items() if g is None or not g.any()]
    assert not idle


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["momentum", "adam", "adagrad"])
def test_what_was_there_trains_on_as_if_nothing_had_come(name: str, kind: str) -> None:
    model, inputs, insert = prepared(name, torch.float64)
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, inputs, optimizer)
    reference = copy.deepcopy(model)
    other = OPTIMIZERS[kind](reference.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trace(model, inputs).apply([insert], optimizer=optimizer)
    step(model, inputs, optimizer)
    step(reference, inputs, other)
    trained = dict(model.named_parameters())
    for parameter, value in reference.named_parameters():
        torch.testing.assert_close(trained[parameter], value, rtol=1e-6, atol=1e-9)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)


@pytest.mark.parametrize("name", CASES)
def test_a_silent_block_goes_without_a_trace(name: str) -> None:
    model, inputs, insert = prepared(name)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    start, widths, before = everything(model, optimizer, graph), graph.widths, model(inputs)
    params = graph.cost().params
    graph.apply([insert], optimizer=optimizer)
    silent = CASES[name][3]
    assert silent in graph.blocks
    receipt = graph.apply([Remove(silent)], optimizer=optimizer)
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)
    assert graph.cost().params == params
    assert graph.widths == widths
    assert not any(name.startswith(silent) for name in model.state_dict())
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    receipt.undo()
    graph.receipts[-1].undo()
    assert_same(everything(model, optimizer, graph), start)


def test_a_removal_is_undone_bit_for_bit_with_its_place_in_the_optimizer() -> None:
    model, inputs, _ = prepared("transformer")
    blocks, head = (model.get_submodule(name).parameters() for name in ("blocks", "head"))
    groups: list[dict[str, Any]] = [{"params": [*blocks]}, {"params": [*head], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups)
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    start = everything(model, optimizer, graph)
    order = [[*map(id, group["params"])] for group in optimizer.param_groups]
    receipt = graph.apply([Remove("blocks.1", exact=False)], optimizer=optimizer)
    assert "blocks.1.up" not in graph.widths
    assert receipt.widths["blocks.1.up"] == (12, 0)
    assert len(optimizer.param_groups[0]["params"]) == 20
    step(model, inputs, optimizer)
    receipt.undo()
    assert [[*map(id, group["params"])] for group in optimizer.param_groups] == order
    now = everything(model, optimizer, graph)
    assert now.keys() == start.keys()
    for kind in ("value", "state exp_avg"):
        name = f"{kind} blocks.1.up.weight"
        assert torch.equal(now[name], start[name])


def test_edits_after_a_block_came_may_name_it() -> None:
    model, inputs, insert = prepared("resnet")
    optimizer = torch.optim.Adam(model.parameters())
    graph = trace(model, inputs)
    before = model(inputs)
    plan: list[Edit] = [Shrink("3.0.conv1", remove=[1]), insert, Grow("3.0_1.conv1", units=3)]
    receipt = graph.apply(plan_from_json(plan_to_json(plan)), optimizer=optimizer)
    assert receipt.widths == {"3.0.conv1": (4, 3), "3.0_1.conv1": (0, 7)}
    step(model, inputs, optimizer)
    receipt.undo()
    assert graph.widths["3.0.conv1"] == 4
    graph.apply([insert, Grow("3.0_1.conv1", units=3)], optimizer=optimizer)
    torch.testing.assert_close(model(inputs), model(inputs))
    assert model(inputs).shape == before.shape


@pytest.mark.parametrize(
    ("name", "plan", "reason"),
    [
        ("transformer", [Remove("blocks.1")], "changes its input"),
        ("transformer", [Remove("embed", exact=False)], "it is not a block"),
        ("transformer", [Insert("embed")], "its parent is a Transformer"),
        ("mlp", [Insert("3", like="0")], "cannot"),
        ("mlp", [Insert("4")], "cannot"),
        ("vgg", [Insert("2", like=["0", "1", "2"])], "cannot"),
        ("transformer", [Insert("blocks.0"), Grow("blocks.0_1.norm", units=1)], "blocks.0_1"),
        (
            "transformer",
            [Remove("blocks.0", exact=False), Grow("blocks.0.up", units=1)],
            "no width",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_touched(
    name: str, plan: list[Any], reason: str
) -> None:
    model, inputs, _ = prepared(name)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, inputs, optimizer)
    graph = trace(model, inputs)
    start, modules = everything(model, optimizer, graph), [*model.modules()]
    with pytest.raises((EditError, UnknownNameError), match=reason):
        graph.apply(plan, optimizer=optimizer)
    assert_same(everything(model, optimizer, graph), start)
    assert [*map(id, model.modules())] == [*map(id, modules)]
    graph.apply([Grow(graph.groups[-1].name, units=1)], optimizer=optimizer)


def test_names_of_modules_that_are_not_there() -> None:
    model, inputs, _ = prepared("transformer")
    for edit in (Remove("blocks.7"), Insert("block.0"), Insert("blocks.0", like="blocks.9")):
        with pytest.raises(UnknownNameError, match="module"):
            trace(model, inputs).apply([edit])


def test_blocks_of_networks_without_values_are_not_compared() -> None:
    with torch.device("meta"):
        model = Transformer()
    graph = trace(model, torch.zeros(2, 3, 5))
    with pytest.raises(EditError, match="no values"):
        graph.apply([Remove("blocks.1")])
    cost = graph.cost()
    graph.apply([Remove("blocks.1", exact=False)])
    assert graph.cost().params < cost.params


def test_masks_come_along() -> None:
    model, inputs, insert = prepared("resnet")
    optimizer = torch.optim.Adam(model.parameters())
    graph = trace(model, inputs)
    keep = torch.rand_like(model.get_parameter("3.1.conv1.weight")) > 0.5
    graph.apply([Mask("3.1.conv1.weight", keep=keep), insert], optimizer=optimizer)
    new = model.get_parameter("3.0_1.conv1.weight")
    assert torch.equal(mask_of(new), keep)  # type: ignore[arg-type]
    for _ in range(3):
        step(model, inputs, optimizer)
    assert not new[~keep].any()


@pytest.mark.parametrize("name", CASES)
def test_saved_depth_is_loaded_into_what_the_constructor_makes(name: str, tmp_path: Path) -> None:
    model, inputs, insert = prepared(name)
    optimizer = torch.optim.Adam(model.parameters())
    graph = trace(model, inputs)
    graph.apply([insert], optimizer=optimizer)
    new = CASES[name][3]
    inside = [g.name for g in graph if g.name in (f"{new}.up", f"{new}.conv1")]
    plan: list[Edit] = [Grow(group, units=2) for group in inside]
    graph.apply([*plan, Insert(new), Remove(insert.like[0], exact=False)], optimizer=optimizer)
    step(model, inputs, optimizer)
    save(tmp_path / "network", model, optimizer)

    fresh, _, _ = prepared(name)
    other = torch.optim.Adam(fresh.parameters())
    load(tmp_path / "network", fresh, other)
    torch.testing.assert_close(fresh(inputs), model(inputs), rtol=0, atol=0)
    for one, which in ((model, optimizer), (fresh, other)):
        step(one, inputs, which)
    torch.testing.assert_close(fresh(inputs), model(inputs), rtol=0, atol=0)
    load(tmp_path / "network", model, optimizer)  # into itself


def test_history_makes_the_same_depth_again(tmp_path: Path) -> None:
    model, inputs, _ = prepared("resnet")
    graph = trace(model, inputs)

    def mask(name: str) -> Mask:
        return Mask(name, keep=torch.rand(model.get_parameter(name).shape) > 0.3)

    weight = "3.1.conv1.weight"
    graph.apply([mask(weight), mask("6.weight")])
    graph.apply([Insert("3.0", like="3.1"), mask("6.weight")])  # the copy is masked, too
    graph.apply([Shrink("3.1.conv1", remove=[0])])
    graph.apply([mask(weight)])
    torch.nn.init.zeros_(model.get_parameter("3.0.bn2.weight"))
    torch.nn.init.zeros_(model.get_parameter("3.0.bn2.bias"))
    with torch.no_grad():  # what it is given is not negative: the block changes nothing
        graph.apply([Remove("3.0"), Grow("3.0_1.conv1", units=2)])
    save(tmp_path / "n", model)
    loaded = resnet()
    load(tmp_path / "n", loaded)
    assert history_of(loaded) == history_of(model)
    again = resnet().eval()
    graph_again = trace(again, inputs)
    for plan in history_of(loaded):
        graph_again.apply(plan_from_json(plan_to_json(plan)))
    assert graph_again.widths == graph.widths
    for (name, one), (other_name, other) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert name == other_name
        masks = mask_of(one), mask_of(other)
        assert (masks[0] is None) == (masks[1] is None), name
        assert masks[0] is None or torch.equal(masks[0], masks[1]), name  # type: ignore[arg-type]


def test_depth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, inputs, insert = prepared("mlp")
    trace(model, inputs).apply([insert])
    save(tmp_path / "network", model)
    other = nn.Sequential(nn.Linear(5, 8))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match="names blocks that the network does not have"):
        load(tmp_path / "network", other)
    assert [*other.state_dict()] == [*before]
    elsewhere, _, _ = prepared("mlp")
    trace(elsewhere, inputs).apply([Remove("2", exact=False)])
    with pytest.raises(CheckpointError, match="other blocks were inserted or removed"):
        load(tmp_path / "network", elsewhere)


def test_a_compiled_network_follows() -> None:
    model, inputs, insert = prepared("transformer")
    compiled = torch.compile(model, backend="eager")
    before = compiled(inputs)
    graph = trace(model, inputs)
    graph.apply([insert])
    torch.testing.assert_close(compiled(inputs), before, rtol=1e-5, atol=1e-5)
    graph.apply([Remove("blocks.0", exact=False)])
    torch.testing.assert_close(compiled(inputs), model(inputs))
