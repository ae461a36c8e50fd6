"""The command as users start it, in its own process."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import hears_ctrl_c

DYNOPT = [sys.executable, "-c", "from dynopt_ray.cli import main; main()"]

SEARCH = """
kind: search
num_threads: 1
task: {name: digits-mlp, hidden: [16]}
train: {num_steps: 60, lr: 3e-3}
search: {num_trials: 10_000, retrain_steps: 2_000, num_reports: 200, searcher: random}
space: {remove_fraction: {low: 0.1, high: 0.5}}
"""

HOLDS = "run holds the results so far; continue with `dynopt resume run`"


def dynopt(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*DYNOPT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def descendants(pid: int) -> dict[int, str]:
    """Return the descendants of a process: process id -> command line."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        todo += below
        for child in below:
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            found[child] = command.replace(b"\0", b" ").decode()
    return found


def alive(processes: dict[int, str]) -> list[str]:
    """Return the command lines of those processes that are still running."""
    running = []
    for pid, command in processes.items():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            running.append(command)
    return running


def test_help_is_fast(tmp_path: Path) -> None:
    """It imports what any help made with typer does, and four modules of ours."""
    code = (
        "import sys, typer\n"
        "from rich.console import Console\n"
        "def show(app):\n"
        "    try: app(['--help'])\n"
        "    except SystemExit: pass\n"
        "another = typer.Typer()\n"
        "another.command()(lambda: None)\n"
        "show(another)\n"
        "before = set(sys.modules)\n"
        "from dynopt_ray.cli import app\n"
        "show(app)\n"
        "print(*sorted(sys.modules.keys() - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ours = "dynopt_ray dynopt_ray.cli dynopt_ray.errors dynopt_ray.interrupts"
    assert done.stdout.splitlines()[-1] == ours


def test_bad_input_is_one_message_without_traceback(tmp_path: Path) -> None:
    done = dynopt("run", "prune", "--set", "prne.rounds=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "prne: unknown key" in done.stderr
    assert "Did you mean 'prune'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGINT] * 3, 130), ([signal.SIGTERM], 143)], ids=["int", "term"]
)
def test_signals_end_everything(tmp_path: Path, signals: list[signal.Signals], code: int) -> None:
    (tmp_path / "s.yaml").write_text(SEARCH)
    process = started("run", "s.yaml", "--out", "run", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        # The command line of a worker that runs a trial contains the name of its actor.
        while not any("_TrialActor" in command for command in descendants(process.pid).values()):
            assert time.monotonic() < deadline, "no trial has started"
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        below = descendants(process.pid)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.splitlines() == [HOLDS, "interrupted"]
    assert "Traceback" not in output + errors
    assert alive(below) == []
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.ray
def test_sigterm_while_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SEARCH)
    process = started("run", "s.yaml", "--out", "run", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not any("raylet" in command for command in descendants(process.pid).values()):
            assert time.monotonic() < deadline, "Ray has not started"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors.splitlines()) == (143, ["interrupted"])
    assert alive(below) == []
    # Ray starts before all other work, so there is nothing to keep.
    assert not (tmp_path / "run").exists()


def test_an_interrupt_while_python_ends_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import dynopt_ray.runs as runs\n"
        "from dynopt_ray.cli import main\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 2)\n"
        "late = Late()\n"
        "runs.load_spec = lambda *_: None\n"
        "runs.prepare = lambda spec: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['dynopt', 'run', 'prune']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=hears_ctrl_c,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_lets_an_import_finish(tmp_path: Path) -> None:
    (tmp_path / "loading.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.3)\n"
        "print('whole')"
    )
    code = (
        "import time\n"
        "from dynopt_ray.interrupts import Interrupts\n"
        "with Interrupts().heard():\n"
        "    import loading\n"
        "    time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=hears_ctrl_c,
    )
    assert done.stdout == "whole\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 0.9, 1.2])
def test_ctrl_c_during_imports(after_s: float, tmp_path: Path) -> None:
    process = started("run", "prune", "--set", "task=digits-mlp", "--out", "run", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()  # before Python itself has started, a signal may end it in any way
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # the latter before our handler is installed
    assert "error" not in errors


def started(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start a command; it prints a first line before it imports dynopt_ray."""
    return subprocess.Popen(
        [sys.executable, "-c", f"print('started', flush=True); {DYNOPT[2]}", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        preexec_fn=hears_ctrl_c,
    )


def test_ctrl_c_before_a_run_begins(tmp_path: Path) -> None:
    code = (
        "import dynopt_ray.runs as runs, dynopt_ray.cli as cli\n"
        "def prepare(spec): raise KeyboardInterrupt\n"
        "runs.load_spec, runs.prepare = lambda *_: None, prepare\n"
        "cli.app(['run', 'prune'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_whose_exception_is_lost_ends_the_command_later(tmp_path: Path) -> None:
    """Python prints an exception that is raised while an object is deleted, and goes on."""
    code = (
        "import os, signal\n"
        "from dynopt_ray.interrupts import Interrupts\n"
        "interrupts = Interrupts()\n"
        "class Late:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "with interrupts.heard():\n"
        "    interrupts.check()\n"
        "    late = Late()\n"
        "    del late\n"
        "    print('goes on')\n"
        "    try: interrupts.check()\n"
        "    except KeyboardInterrupt: print('ends', interrupts.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["goes on", "ends 143"]


def test_no_timer_of_ours_ends_a_process_that_is_ending(tmp_path: Path) -> None:
    """A signal during an import sets a timer, which may run out after Python's own end."""
    (tmp_path / "interrupted.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(130)"
    )
    code = (
        "import atexit, signal\n"
        "from dynopt_ray.interrupts import Interrupts\n"
        "last = lambda: print(signal.getsignal(signal.SIGALRM) == signal.SIG_IGN)\n"
        "atexit.register(last)\n"  # what is registered first is called last
        "with Interrupts().heard():\n"
        "    import interrupted"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "True\n")
