"""Progress: bars on a terminal, lines elsewhere, and everything in the log."""

import io
import logging
import math
import re
import threading

import pandas as pd
import pytest
from rich.console import Console

from dynopt_ray.runs import progress as progress_module
from dynopt_ray.runs.progress import Lines, Live, Progress, Silent

TABLE = pd.DataFrame({"network": ["[before]", "after"], "accuracy": [0.5, float("nan")]})


def drive(progress: Progress) -> None:
    with progress.stage("work", 4) as stage:
        stage.advance(2, note="[half] way")
        stage.result("all [done]")
    progress.table("Outcome [x]", TABLE)


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)


class Written(io.StringIO):
    """A file that tells other threads that something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.happened = threading.Event()

    def write(self, text: str) -> int:
        length = super().write(text)
        self.happened.set()
        return length


def text_of(output: Console) -> str:
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_are_printed_and_not_read_as_markup(terminal: bool) -> None:
    output = console(terminal=terminal)
    drive(Live(output) if terminal else Lines(output))
    text = text_of(output)
    assert re.search(r"work \(\d+\.\d s\): all \[done\]\n", text)
    assert "Outcome [x]" in text
    assert "[before]    0.5000" in text


def test_a_wide_table_is_not_cut_on_a_narrow_terminal() -> None:
    output = console(terminal=True)
    setting = "hypergradient (initial 0.003, hyper_lr 0.02)"
    texts = {"optimizer": ["sgd (momentum 0.9)"], "recovery": ["greedy"], "lr": [setting]}
    numbers = {f"figure_{n}": [0.1 + n] for n in range(4)}
    Lines(output).table("Wide", pd.DataFrame(texts | numbers))
    text = text_of(output)
    assert "…" not in text
    assert all(f"{0.1 + n:.4f}" in text for n in range(4))


def test_without_a_terminal_there_is_one_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_QUIET_S", math.inf)  # however slow this machine is
    output = console(terminal=False)
    with Lines(output).stage("work", 3) as stage:
        for _ in range(3):
            stage.advance()
    assert re.fullmatch(r"work \(\d+\.\d s\)\n", text_of(output))


def test_without_a_terminal_a_long_stage_prints_its_quarters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "_QUIET_S", 0.0)
    output = console(terminal=False)
    with Lines(output).stage("work", 8) as stage:
        for _ in range(8):
            stage.advance(note="[half] way")
    lines = text_of(output).splitlines()
    assert lines[:3] == [f"work: {share} %, [half] way" for share in (25, 50, 75)]
    assert len(lines) == 4


def test_without_a_terminal_a_stage_of_unknown_length_prints_its_duration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "_SILENT_S", 0.02)
    written, threads = Written(), threading.enumerate()
    with Lines(Console(file=written, width=80)).stage("work"):
        assert written.happened.wait(timeout=60)
    lines = written.getvalue().splitlines()
    assert re.fullmatch(r"work: \d+ s so far", lines[0])
    assert re.fullmatch(r"work \(\d+\.\d s\)", lines[-1])
    assert threading.enumerate() == threads  # nobody is left to say more


def test_on_a_terminal_bars_show_the_note() -> None:
    output = console(terminal=True)
    with Live(output).stage("work", 2) as stage:
        stage.advance(note="[half] way")
    assert "[half] way" in text_of(output)
    assert "✓ work" in text_of(output)


def test_a_stage_that_fails_leaves_no_line() -> None:
    output = console(terminal=False)
    with pytest.raises(ValueError, match="broken"), Lines(output).stage("work"):
        raise ValueError("broken")
    assert text_of(output) == ""


@pytest.mark.parametrize("kind", ["silent", "lines", "live"])
def test_everything_is_in_the_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynopt_ray.runs")
    output = console(terminal=kind == "live")
    progress: dict[str, Progress] = {
        "silent": Silent(),
        "lines": Lines(output),
        "live": Live(output),
    }
    drive(progress[kind])
    assert "work …" in caplog.text
    assert "all [done]" in caplog.text
    assert "[before]" in caplog.text
