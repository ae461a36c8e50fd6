"""Joining clusters: what is asked of the nodes, and which clusters are refused."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dynopt_ray.cluster.sessions.dashboards import check_dashboard
from dynopt_ray.cluster.sessions.node_probe import NodeFacts, check_answers, versions_here
from dynopt_ray.cluster.sessions.preflight import ClusterNeed, Node, check_nodes, check_storage
from dynopt_ray.errors import ClusterError
from tests.cluster.heads import Head, running_head
from tests.cluster.test_cluster_session import script

_JOIN = """
address, options, work = sys.argv[1] or None, json.loads(sys.argv[2]), sys.argv[3]
start = time.monotonic()
try:
    with session(address, **options) as joined:
        @ray.remote(num_cpus=0)
        def module():
            import my_module
            return my_module.VALUE
        tell(started=joined.started, address=joined.address, value=ray.get(module.remote()),
             resources=dict(joined.nodes[0].resources))
except ClusterError as error:
    tell(error=str(error))
tell(seconds=time.monotonic() - start)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("home"), '--resources={"licence": 2}') as running:
        yield running


def told(head: Head, home: Path, address: str, options: dict[str, object], **more: str) -> dict:  # type: ignore[type-arg]
    """Join a cluster in a process of its own, and return what it tells."""
    (home / "my_module.py").write_text("VALUE = 42")
    environment = {k: v for k, v in head.environment.items() if k.startswith("RAY_AUTH")}
    process = script(_JOIN, address, json.dumps(options), "", home=home, **environment, **more)
    out, err = process.communicate(timeout=90)
    found: dict[str, object] = {}
    for line in out.splitlines():
        found |= json.loads(line)
    assert found, err
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_joined_through_both_of_its_ports(head: Head, tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    for address in (head.address, head.client):
        found = told(head, tmp_path, address, {"storage": storage, "resources": {"licence": 1}})
        assert "error" not in found
        assert not found["started"]
        assert found["address"] == head.address
        assert found["value"] == 42
        assert found["resources"] == {"licence": 2}
    assert list(Path(storage).iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resources": {"licence": 3}}, "one task needs 1 CPUs and 0 GPUs, 3 licence"),
        ({"accelerator_type": "H100"}, "of type H100, but no node has all of it"),
        ({"total_cpus": 5}, "the run reserves 5 CPUs at the same time, but there are 2"),
        ({"storage": "nothing://bucket/runs"}, "storage nothing://bucket/runs cannot be written"),
    ],
)
def test_a_cluster_that_lacks_something_is_refused(
    options: dict[str, object], message: str, head: Head, tmp_path: Path
) -> None:
    assert message in told(head, tmp_path, head.address, options)["error"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("is_alive", [True, False], ids=["running", "dead"])
def test_a_session_starts_its_own_ray_where_another_head_left_its_address(
    is_alive: bool, head: Head, tmp_path: Path
) -> None:
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        file = Path(place) / "ray" / "ray_current_cluster"
        file.parent.mkdir()
        file.write_text(head.address if is_alive else "127.0.0.1:1")
        found = told(head, tmp_path, "", {"num_cpus": 1}, RAY_TMPDIR=place)
    assert "error" not in found
    assert found["started"]
    assert found["address"] != head.address
    assert found["value"] == 42


def test_other_versions_on_a_node_are_refused() -> None:
    here = versions_here()
    gpu = {**here, "torch": here["torch"].partition("+")[0] + "+cu130"}
    nodes = [(Node("a", 1, 0), facts(here)), (Node("b", 1, 1), facts(gpu))]
    check_answers(nodes, None)
    for package, version in (("torch", "2.0.0"), ("dynopt_ray", "missing"), ("python", "3.9")):
        other = (Node("c", 1, 1), facts({**here, package: version}))
        with pytest.raises(ClusterError, match=rf"c has {package} {version}, not"):
            check_answers([*nodes, other], None)


def test_a_node_that_cannot_use_the_storage_is_named() -> None:
    answers = [(Node("c", 1, 1), facts(versions_here(), "Read-only file system"))]
    with pytest.raises(ClusterError, match=r"storage /runs .*: node c: Read-only file system"):
        check_answers(answers, "/runs")


def facts(versions: dict[str, str], storage: str = "") -> NodeFacts:
    return {"versions": versions, "dashboard": "", "storage": storage}


@pytest.mark.parametrize(
    ("need", "room"),
    [
        (ClusterNeed(cpus=2), 4),
        (ClusterNeed(cpus=1, gpus=0.5), 4),
        (ClusterNeed(cpus=1, gpus=0.4), 4),
        (ClusterNeed(cpus=1, gpus=0.6), 2),
        (ClusterNeed(cpus=1, gpus=2), 1),
        (ClusterNeed(cpus=1, accelerator_type="A100"), 8),
        (ClusterNeed(cpus=1, accelerator_type="H100"), 0),
        (ClusterNeed(cpus=1, resources={"licence": 1}), 3),
        (ClusterNeed(cpus=1, resources={"disk": 1}), 0),
        (ClusterNeed(cpus=0, gpus=0), 1),
    ],
)
def test_a_node_has_room_for_as_many_tasks_as_fit(need: ClusterNeed, room: int) -> None:
    node = Node("a", 8, 2, {"licence": 3}, ("A100",))
    assert need.room(node) == room
    if room == 0:
        with pytest.raises(ClusterError, match=r"a: 8 CPUs, 2 GPUs \(A100\), 3 licence"):
            check_nodes(need, [node])


class _Dashboard(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def dashboard() -> Iterator[int]:
    """The port of a server on this machine that answers as a dashboard does."""
    with HTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_dashboard_that_is_open_without_a_token_is_refused(
    dashboard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    # Another way to write 127.0.0.1, which stands for an address of the network.
    of_network = f"127.1:{dashboard}"
    with pytest.raises(ClusterError, match="is open to the network and asks for no token"):
        check_dashboard(of_network)
    check_dashboard(f"127.0.0.1:{dashboard}")
    check_dashboard("")
    monkeypatch.setattr(_Dashboard, "status", 401)
    check_dashboard(of_network)
    monkeypatch.setattr(_Dashboard, "status", 200)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_dashboard(of_network)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nothing://bucket/runs", "cannot open nothing://bucket/runs"),
        (
            "s3://key:secret@bucket/runs?region=us-east-1&scheme=http"
            "&endpoint_override=127.0.0.1%3A1",
            "cannot be written and read",
        ),
    ],
)
def test_storage_that_does_not_answer_is_refused_soon(uri: str, reason: str) -> None:
    with pytest.raises(ClusterError, match=reason):
        check_storage(uri)
