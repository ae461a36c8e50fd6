"""Virtual environments of the peers, whose pinned versions conflict with ours."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PEERS = {
    ".venv-peers": (
        "torch==2.13.0",
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "scikit-learn==1.9.1",
        "torch-pruning==1.6.1",
    ),
    ".venv-peers-vision": (
        "torch==2.14.1",
        "torchvision==0.29.1",
        "numpy==2.4.6",
        "scipy==1.17.1",
        "safetensors==0.8.0",
        "torch-pruning==1.6.1",
        "timm==1.0.31",
        "transformers==5.23.0",
    ),
}
"""Environment -> the packages that are installed in it."""


def run_peer(environment: str, module: str, *arguments: str) -> Any:
    """Run a peer's script, and return the JSON on the last line that it prints.

    Args:
        environment: a key of `PEERS`. The environment is made at its first use.
        module: the script, a module of `experiments.benchmarks.peers`.
        arguments: the arguments on its command line.
    """
    return run_lines(environment, module, *arguments)[-1]


def run_lines(environment: str, module: str, *arguments: str) -> list[Any]:
    """Run a peer's script, and return all lines of JSON that it prints; see `run_peer`."""
    return _lines(_environment(environment), f"peers.{module}", arguments)


def run_script(module: str, *arguments: str) -> Any:
    """Run one of our own scripts in a new process; return the JSON on its last line."""
    return _lines(Path(sys.executable), module, arguments)[-1]


def run_from(checkout: Path, module: str, *arguments: str) -> Any:
    """Run one of this checkout's scripts on the library of another; see `run_script`.

    Args:
        checkout: a folder with another version of this repository.
        module: the script, which uses only what both versions offer.
        arguments: the arguments on its command line.
    """
    script = ROOT / "experiments" / "benchmarks" / f"{module}.py"
    path = os.pathsep.join(str(folder) for folder in (checkout, checkout / "envs"))
    done = subprocess.run(
        # Without -P, the script's own folder would come first.
        [sys.executable, "-P", str(script), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _lines(python: Path, module: str, arguments: Sequence[str]) -> list[Any]:
    done = subprocess.run(
        [str(python), "-m", f"experiments.benchmarks.{module}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def _environment(name: str) -> Path:
    folder, wanted = ROOT / name, "\n".join(PEERS[name])
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making {name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[name]], check=True)
        stamp.write_text(wanted)
    return python
