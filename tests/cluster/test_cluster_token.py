"""The token of a cluster: whole or not there, the same for all, and never empty."""

import threading
from pathlib import Path

import pytest

from dynopt_ray.cluster.sessions.authentication import has_token, make_token, use_token
from dynopt_ray.errors import ClusterError


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The token file of a user without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_those_who_start_at_the_same_time_have_one_token(tmp_path: Path) -> None:
    path, found = tmp_path / "token", list[str]()
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        make_token(path)
        found.append(path.read_text())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert [file.name for file in tmp_path.iterdir()] == ["token"]


def test_a_token_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever read it then would use an empty one."""
    path = tmp_path / "token"
    write_text = Path.write_text

    def interrupted(self: Path, text: str) -> None:
        write_text(self, text[:10])
        assert not path.exists()
        raise KeyboardInterrupt("stop")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            make_token(path)
    assert not list(tmp_path.iterdir())
    make_token(path)
    assert len(path.read_text()) == 64


@pytest.mark.parametrize("content", ["", "\n", " \n\t"])
@pytest.mark.parametrize("starting", [True, False])
def test_an_emptied_token_is_refused(content: str, starting: bool, token_file: Path) -> None:
    token_file.parent.mkdir()
    token_file.write_text(content)
    with pytest.raises(ClusterError, match=r"auth_token is empty.* delete it"):
        use_token(starting=starting)
    assert token_file.read_text() == content


def test_a_token_elsewhere_is_checked_too(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    with pytest.raises(ClusterError, match="cannot read the token file"):
        has_token()
    (tmp_path / "mine").touch()
    with pytest.raises(ClusterError, match="mine is empty"):
        has_token()
    (tmp_path / "mine").write_text("secret")
    assert has_token()
    assert not token_file.exists()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(ClusterError, match=r"cannot write the token file .*RAY_AUTH_TOKEN"):
        make_token(tmp_path / "home" / ".ray" / "auth_token")
