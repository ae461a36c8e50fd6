"""Resolve and check the addresses of clusters."""

import os
import socket

from ray._private import services

from dynopt_ray.errors import ClusterError

_CONNECT_S = 5.0
# The first bytes of an HTTP/2 client, with empty settings; a server's first frame has its settings.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = bytes([4])


def check_reachable(address: str) -> None:
    """Refuse an address at which nothing answers, without joining the cluster.

    Raises:
        ClusterError: nothing accepts connections there, or it is not an address.
    """
    if address != "local":
        answering_address(found_address(address))


def check_accepts(host: str, port: int) -> None:
    """Refuse a server that does not accept connections.

    Raises:
        ClusterError: nothing accepts connections there.
    """
    _connected(f"{host}:{port}", host, port).close()


def found_address(address: str) -> str:
    """Return the address itself, or for "auto" that of the cluster on this machine."""
    if address != "auto":
        return address
    try:
        return str(services.get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise ClusterError(
            "no cluster runs on this machine; leave the address out to start one, or give the "
            "address of a cluster on another machine"
        ) from error


def answering_address(address: str) -> str:
    """Connect to an address, and return the IP address of the machine that accepted.

    Ray's servers speak gRPC, so the answer must be HTTP/2. Ray itself would wait for minutes for
    the answer of another server.

    Raises:
        ClusterError: nothing accepts connections there, or it is no server of Ray.
    """
    with _connected(address, *_split(address)) as connection:
        ip = str(connection.getpeername()[0])
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return ip
        try:
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)
        except OSError:
            answer = b""
    if answer[3:4] != _SETTINGS:
        raise ClusterError(
            f"what answers at {address} is not a Ray cluster; give the address that `ray start` "
            "prints, host:6379, or ray://host:10001, not that of the dashboard"
        )
    return ip


def _connected(address: str, host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=_CONNECT_S)
    except OSError as error:
        raise ClusterError(
            f"no cluster answers at {address}: {error}; check the address, and that the head node "
            "runs and can be reached from here"
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"{address!r} is not the address of a cluster; write 'host:6379', "
            "'ray://host:10001' or 'auto'"
        )
    return host.strip("[]"), int(port)


def is_this_machine(ip: str) -> bool:
    """Whether an IP address belongs to this machine."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            # Binding succeeds only for addresses of this machine.
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
