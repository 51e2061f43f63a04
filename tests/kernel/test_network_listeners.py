"""The sockets of a real network namespace, and the processes that hold them."""

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.engine.network.listeners import conflicts, listeners, read_proc_net
from reconciler.engine.network.ports import PortMapping
from tests.kernel.netns import Namespace, private_network

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def host() -> Iterator[Namespace]:
    with private_network() as namespace:
        yield namespace


def bound(family: int, kind: int, address: str, port: int, *, v6_only: bool = False) -> socket.socket:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def wanted(port: int, protocol: str, host_ip: str = "0.0.0.0") -> PortMapping:
    return PortMapping("web", "server", IPv4Address(host_ip), port, 80, protocol, IPv4Address("172.20.5.2"))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("family", "address", "v6_only", "blocks"),
    [
        (socket.AF_INET, "0.0.0.0", False, True),
        (socket.AF_INET, "127.0.0.1", False, True),
        (socket.AF_INET6, "::", False, True),
        (socket.AF_INET6, "::", True, False),
        (socket.AF_INET6, "::1", True, False),
    ],
)
def test_a_socket_is_found_with_the_process_that_holds_it(
    host: Namespace, protocol: str, family: int, address: str, v6_only: bool, blocks: bool
) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with bound(family, kind, address, 8080, v6_only=v6_only) as sock:
        (found,) = listeners()
        assert (found.protocol, str(found.address), found.port) == (protocol, address, 8080)
        assert found.inode == os.fstat(sock.fileno()).st_ino
        said = [str(conflict) for conflict in conflicts([wanted(8080, protocol), wanted(8081, protocol)])]
        name = Path("/proc/self/comm").read_text().strip()
        expected = f"port 0.0.0.0:8080/{protocol} already used by {name} (pid {os.getpid()})"
        assert said == ([expected] if blocks else [])
    assert listeners() == ()


def test_connections_and_their_ends_are_no_listeners(host: Namespace) -> None:
    with bound(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 8080) as server:
        client = socket.create_connection(("127.0.0.1", 8080))
        with client, server.accept()[0]:
            assert [found.port for found in listeners()] == [8080]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(("127.0.0.1", 9))
            assert [found.protocol for found in listeners()] == ["tcp"]


def test_the_kernel_and_the_text_of_proc_agree(host: Namespace) -> None:
    with (
        bound(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 8080),
        bound(socket.AF_INET6, socket.SOCK_STREAM, "::", 8081),
        bound(socket.AF_INET, socket.SOCK_DGRAM, "0.0.0.0", 8082),
        bound(socket.AF_INET6, socket.SOCK_DGRAM, "::1", 8083),
    ):
        directory = Path("/proc/thread-self/net")
        from_text = [
            (found.protocol, found.address, found.port, found.inode)
            for name in ("tcp", "tcp6", "udp", "udp6")
            for found in read_proc_net((directory / name).read_text(), name[:3])
        ]
        asked = [(found.protocol, found.address, found.port, found.inode) for found in listeners()]
        assert sorted(from_text, key=str) == sorted(asked, key=str)
        assert len(asked) == 4
