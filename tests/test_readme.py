"""The examples in the README and the docs run as printed."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynopt_ray.policies import ActionSet
from dynopt_ray.structure import trace

ROOT = Path(__file__).parents[1]


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    blocks = examples("README.md")
    assert len(blocks) >= 4
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, example {number}", "exec"), namespace)


def test_surroundings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for block in examples("docs/surroundings.md"):
        exec(compile(block, "docs/surroundings.md", "exec"), namespace)
    assert callable(namespace["resize"])


def test_the_guide_to_gpus_runs() -> None:
    namespace: dict[str, Any] = {}
    for block in examples("docs/gpu.md"):
        exec(compile(block, "docs/gpu.md", "exec"), namespace)
    assert namespace["task"].precision == "bf16"


def test_plugins_of_the_docs_pass_their_kits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion, test, action, others = examples("docs/plugins.md")
    (tmp_path / "my_criteria.py").write_text(criterion)
    (tmp_path / "my_actions.py").write_text(action)
    (tmp_path / "my_plugins.py").write_text(others)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {}
    exec(compile(test, "docs/plugins.md", "exec"), namespace)
    check = namespace["test_outgoing"]
    assert callable(check)
    check()
    importlib.import_module("my_actions").test_add_units()
    assert "add_units" in ActionSet(["keep", "my_actions:AddUnits"]).labels
    importlib.import_module("my_plugins").test_plugins()
    del sys.modules["my_criteria"], sys.modules["my_actions"], sys.modules["my_plugins"]


def test_rules_of_the_docs_resize_exactly() -> None:
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in examples("docs/operation_rules.md"):
        exec(compile(block, "docs/operation_rules.md", "exec"), namespace)
    assert namespace["graph"].widths == {"0": 4, "1": 7}
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    model.forward = lambda x: model[1](namespace["whitened"](model[0](x)))  # type: ignore[method-assign]
    assert trace(model, torch.randn(4, 3)).widths == {"0": 8}


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
