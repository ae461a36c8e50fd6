"""An empty directory and a clean environment for tests of commands."""

import secrets
import sys
from pathlib import Path

import pytest


@pytest.fixture
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, without settings of Ray or of data from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    outside = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "DYNOPT_DATA")
    for name in outside:
        monkeypatch.delenv(name, raising=False)
    return tmp_path
