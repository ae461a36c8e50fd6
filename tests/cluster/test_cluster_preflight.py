import os
from pathlib import Path

import pytest

from dynopt_ray.cluster.sessions.authentication import make_token
from dynopt_ray.cluster.sessions.preflight import (
    ClusterNeed,
    Node,
    check_disk,
    check_nodes,
    this_machine,
)
from dynopt_ray.cluster.sessions.processes import Process, end, ray_processes
from dynopt_ray.errors import ClusterError


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        (ClusterNeed(cpus=4, gpus=0), True),
        (ClusterNeed(cpus=8, gpus=0), True),
        (ClusterNeed(cpus=4, gpus=0.5), True),
        (ClusterNeed(cpus=8, gpus=1), False),
        (ClusterNeed(cpus=4, gpus=3), False),
        (ClusterNeed(cpus=9), False),
    ],
)
def test_a_task_has_to_fit_on_one_node(need: ClusterNeed, fits: bool) -> None:
    nodes = [Node("a", 8, 0), Node("b", 4, 2)]
    if fits:
        check_nodes(need, nodes)
        return
    with pytest.raises(ClusterError, match=r"Available: a: 8 CPUs, 0 GPUs; b: 4 CPUs, 2 GPUs"):
        check_nodes(need, nodes)


def test_no_task_fits_on_a_cluster_without_nodes() -> None:
    with pytest.raises(ClusterError, match="Available: no nodes"):
        check_nodes(ClusterNeed(), [])


def test_this_machine_has_what_the_process_may_use() -> None:
    assert this_machine().cpus == len(os.sched_getaffinity(0))


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    check_disk(ClusterNeed(storage=tmp_path / "new", disk_bytes=1))
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(ClusterError, match=r"GiB free, but 1073741824\.0 GiB are needed"):
        check_disk(ClusterNeed(storage=tmp_path, disk_bytes=2**60))


def test_a_place_for_rays_files_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name, what in (("missing", "does not exist"), ("file", "is not a directory")):
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / name))
        with pytest.raises(ClusterError, match=rf"RAY_TMPDIR is .*/{name}, which {what}"):
            check_disk(ClusterNeed())
    for value in (str(tmp_path), ""):
        monkeypatch.setenv("RAY_TMPDIR", value)
        check_disk(ClusterNeed(disk_bytes=1))


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"file/below cannot be written and read: Not a dir"):
        check_disk(ClusterNeed(storage=tmp_path / "file" / "below"))


def test_a_token_is_secret_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    make_token(path)
    token = path.read_text()
    assert len(token) == 64
    path.chmod(0o644)
    make_token(path)
    assert path.read_text() == token
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_the_given_processes_are_ended() -> None:
    assert ray_processes() == set()
    gone = Process(os.getpid(), 1)
    # This process has the same id but another start time. So it is a different one, and has ended.
    assert not gone.is_alive()
    end({gone}, grace_s=0)
