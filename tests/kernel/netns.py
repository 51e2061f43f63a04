"""Private network namespaces for tests: hosts and containers are namespaces, servers and clients are sockets in them.

The calling process moves into a namespace of its own for the length of a test, so that the machine's links, routes,
tables and settings stay as they are. A namespace lives for as long as its descriptor.
"""

import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TypeVar

from reconciler.linux.namespace import CLONE_NEWNET, setns, unshare

T = TypeVar("T")

ANSWER = 3.0  # seconds that an answer may take on a busy machine
SILENCE = 0.4  # seconds after which no answer counts as none


class Namespace:
    """A network namespace, by descriptor; work is done in it by threads that join it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls) -> "Namespace":
        """A new one, with nothing but a loopback that is down."""

        def leave() -> int:
            unshare(CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return cls(_in_thread(leave))

    def do(self, work: Callable[[], T]) -> T:
        """Run `work` inside, in a thread of its own."""

        def inside() -> T:
            setns(self.fd, CLONE_NEWNET)
            return work()

        return _in_thread(inside)

    def run(self, *command: str) -> str:
        """Run a program inside and return its output."""
        path = f"/proc/{os.getpid()}/fd/{self.fd}"
        done = subprocess.run(
            ["nsenter", f"--net={path}", "--", *command], check=True, capture_output=True, text=True
        )
        return done.stdout

    def socket(self, kind: socket.SocketKind, address: str = "") -> socket.socket:
        """A socket that belongs to this namespace, for addresses such as this one."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.do(lambda: socket.socket(family, kind))

    def close(self) -> None:
        os.close(self.fd)


def _in_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


@contextmanager
def private_network() -> Iterator[Namespace]:
    """Move this process's main thread into a new network namespace, with its loopback up, and back afterwards."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace = Namespace.make()
        try:
            setns(namespace.fd, CLONE_NEWNET)
            namespace.run("ip", "link", "set", "lo", "up")
            yield namespace
        finally:
            setns(before, CLONE_NEWNET)
            namespace.close()
    finally:
        os.close(before)


class Server:
    """Answers every TCP connection and UDP packet on its ports with `NAME <client's address>`, until closed.

    On `::` it answers IPv4, too, with the client's address as IPv4 has it.
    """

    def __init__(
        self, namespace: Namespace, name: str, *ports: tuple[str, int], address: str = "0.0.0.0"
    ) -> None:
        self._name = name
        self.asked = 0
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._stop, selectors.EVENT_READ)
        for protocol, port in ports:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            sock = namespace.socket(kind, address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                if not isinstance(sock, socket.socket):
                    return
                self.asked += 1
                if sock.type == socket.SOCK_STREAM:
                    connection, peer = sock.accept()
                    with connection:
                        connection.sendall(self._answer(peer))
                else:
                    _, peer = sock.recvfrom(100)
                    sock.sendto(self._answer(peer), peer)

    def _answer(self, peer: tuple[str, int]) -> bytes:
        return f"{self._name} {peer[0].removeprefix('::ffff:')}".encode()

    def close(self) -> None:
        os.write(self._stopping, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._stop)
        os.close(self._stopping)

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(
    namespace: Namespace, address: str, port: int, protocol: str = "tcp", *, wait: float = ANSWER
) -> str | None:
    """What answers at this port when asked from this namespace; None where nothing does."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with namespace.socket(kind, address) as sock:
        sock.settimeout(wait)
        try:
            sock.connect((address, port))
            if protocol == "udp":
                sock.send(b"?")
            return sock.recv(100).decode() or None
        except (TimeoutError, ConnectionError, OSError):
            return None


def silent(namespace: Namespace, address: str, port: int, protocol: str = "tcp") -> bool:
    """Whether nothing answers at this port."""
    return ask(namespace, address, port, protocol, wait=SILENCE) is None


class World:
    """A host (the namespace the test runs in), a neighbour on its uplink, and containers."""

    HOST = "192.0.2.1"
    OUTSIDE = "192.0.2.2"
    HOST6 = "2001:db8::1"
    OUTSIDE6 = "2001:db8::2"
    UPLINK = "up0"

    def __init__(self, stack: ExitStack, *, mtu: int = 1400) -> None:
        self._stack = stack
        self.host = stack.enter_context(private_network())
        self.outside = self.namespace()
        self.host.run(
            "ip", "link", "add", self.UPLINK, "mtu", str(mtu), "type", "veth", "peer", "name", "eth0"
        )
        self.host.run("ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{self.outside.fd}")
        self.host.run("ip", "address", "add", f"{self.HOST}/24", "dev", self.UPLINK)
        self.host.run("ip", "link", "set", self.UPLINK, "up")
        self.host.run("ip", "route", "add", "default", "via", self.OUTSIDE)
        self.outside.run("ip", "address", "add", f"{self.OUTSIDE}/24", "dev", "eth0")
        self.outside.run("ip", "link", "set", "eth0", "up", "mtu", str(mtu))

    def give_ipv6(self) -> None:
        """Addresses of IPv6 on the link between the host and its neighbour, as static as those of IPv4."""
        for namespace, link, address in (
            (self.host, self.UPLINK, self.HOST6),
            (self.outside, "eth0", self.OUTSIDE6),
        ):
            namespace.run("ip", "address", "add", f"{address}/64", "dev", link, "nodad")
        self.host.run("ip", "-6", "route", "add", "default", "via", self.OUTSIDE6)

    def namespace(self) -> Namespace:
        made = Namespace.make()
        self._stack.callback(made.close)
        return made

    def serve(
        self, namespace: Namespace, name: str, *ports: tuple[str, int], address: str = "0.0.0.0"
    ) -> Server:
        return self._stack.enter_context(Server(namespace, name, *ports, address=address))
