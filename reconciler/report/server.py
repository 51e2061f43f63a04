"""Two small HTTP servers on waitress: metrics on an address, and the agent's own interface on a unix socket.

Serving never touches the loop: what is served comes from callables that answer from memory. Slow readers, idle clients
and half requests cost a buffer and a descriptor each, up to a limit, and end after half a minute; nothing of a request
is trusted before it is within its limits.
"""

import errno
import grp
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.utilities import BadRequest

from reconciler.errors import BlockedError, ReconcilerError
from reconciler.report.wsgi import Application

GROUP: Final = "reconciler"
_SO_PEERGROUPS: Final = 59  # Linux 4.13; not in the socket module
_MAX_PATH: Final = 107  # bytes of sun_path without its NUL
_LIMITS: Final[Mapping[str, Any]] = {
    "connection_limit": 1100,
    "backlog": 1024,
    "channel_timeout": 30,
    "cleanup_interval": 10,
    "asyncore_loop_timeout": 5,
    "asyncore_use_poll": True,
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024 * 1024,
    "inbuf_overflow": 1024 * 1024,
    "ident": "reconciler",
    "expose_tracebacks": False,
    "clear_untrusted_proxy_headers": True,
    "log_socket_errors": False,
}
_FOR_STRANGERS: Final = {**_LIMITS, "connection_limit": 64, "max_request_body_size": 1}
# Linux 2.4 and 4.15; neither is in the socket module
_FREEBIND: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 15),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),
}


class Server:
    """A running server; `address` is where it listens: host:port or a path."""

    def __init__(
        self,
        listener: socket.socket,
        application: Application,
        *,
        name: str,
        threads: int,
        address: str,
        limits: Mapping[str, Any] = _LIMITS,
        keep_alive: bool = True,
    ) -> None:
        # waitress warns when all threads are busy; that is what the limits are for, and nobody's log file
        logging.getLogger("waitress").setLevel(logging.ERROR)
        self.address = address
        self._map: dict[int, Any] = {}
        self._server = create_server(
            application,
            map=self._map,
            sockets=[listener],
            threads=threads,
            **limits,
        )
        self._server.channel_class = _Channel if keep_alive else _OneRequestChannel
        self._thread = threading.Thread(target=self._server.run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; requests that are being answered have five seconds to end."""
        self._server.task_dispatcher.shutdown()  # first: who answers wakes the loop, which has to be there
        # From the loop's own thread: closing its sockets under its poll would be a race.
        self._server.trigger.pull_trigger(self._end)
        self._thread.join(10)

    def _end(self) -> None:
        self._server.accepting = False
        wasyncore.close_all(self._map, ignore_all=True)  # an empty map ends the loop

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_tcp(host: str, port: int, application: Application, *, threads: int = 2) -> Server:
    """Serve metrics on an address (port 0 takes a free one), or raise BlockedError where that is taken."""
    return _serve("metrics", host, port, application, threads=threads)


def serve_strangers(host: str, port: int, application: Application) -> Server:
    """Serve `peers` to whoever is on the network, or raise BlockedError where the address is taken.

    The address need not be there yet: a cable comes later. Each connection has one answer: of large ones that somebody
    asks for by the dozen, and does not read, none but the first is ever begun.
    """
    return _serve("peers", host, port, application, limits=_FOR_STRANGERS, keep_alive=False, free=True)


def _serve(
    name: str, host: str, port: int, application: Application, *, free: bool = False, **options: Any
) -> Server:
    """Serve on the address that `listen` in the section `name` of device.yaml says."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if free:
            listener.setsockopt(*_FREEBIND[family], 1)
        listener.bind((host, port))
        listener.setblocking(False)
        found, number = listener.getsockname()[:2]
        address = f"[{found}]:{number}" if family == socket.AF_INET6 else f"{found}:{number}"
        return Server(listener, application, name=name, address=address, **{"threads": 2, **options})
    except OSError as error:
        listener.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
        hint = f"set {name}.listen in device.yaml" if taken else ""
        raise BlockedError(f"{name} address {host}:{port}: {error.strerror or error}", hint=hint) from error


def serve_unix(path: Path, application: Application, *, group: str = GROUP, threads: int = 8) -> Server:
    """Serve on a unix socket with mode 0660 for root and `group` (0600 where there is no such group).

    A socket that nobody listens on is replaced; a living one raises BlockedError, anything else in the way (a symbolic
    link is never followed) a ReconcilerError.
    """
    if len(os.fsencode(path)) > _MAX_PATH - 8:
        raise ReconcilerError(f"{path}: too long for a socket", hint="use a shorter --run directory")
    _make_way(path)
    gid = _gid(group)
    listener = _Guarded(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.allowed_gid = gid
    partial = path.with_name(f".{os.urandom(3).hex()}")
    try:
        listener.bind(str(partial))
        try:
            if gid is not None:
                os.chown(partial, 0 if os.geteuid() == 0 else -1, gid)
            partial.chmod(0o600 if gid is None else 0o660)
            listener.listen(_LIMITS["backlog"])
            # Only now does the name appear: nobody finds a socket with looser permissions, or one not listening yet.
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        listener.setblocking(False)
        return _UnixServer(listener, application, path, threads)
    except OSError as error:
        listener.close()
        raise ReconcilerError(f"{path}: {error.strerror or error}") from error


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Refuses at once what is no HTTP from its first byte on: who tries TLS first would wait for an answer."""

    def received(self, data: bytes) -> int:
        begins = not self.header_plus and not self.headers_finished and self.body_rcv is None
        if begins and data and not (data[:1] in b"\r\n" or 0x20 <= data[0] < 0x7F):
            self.error = BadRequest("this is plain HTTP")
            self.completed = True
            return len(data)
        return int(super().received(data))


class _Channel(HTTPChannel):  # type: ignore[misc]
    parser_class = _Parser


class _OneRequestParser(_Parser):
    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        self.headers["CONNECTION"] = "close"


class _OneRequestChannel(HTTPChannel):  # type: ignore[misc]
    parser_class = _OneRequestParser


class _UnixServer(Server):
    def __init__(self, listener: socket.socket, application: Application, path: Path, threads: int) -> None:
        super().__init__(listener, application, name="socket", threads=threads, address=str(path))
        self._path = path
        self._inode = path.lstat().st_ino

    def close(self) -> None:
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass  # somebody was quicker
        super().close()


class _Guarded(socket.socket):
    """A listening unix socket that lets in root, our own user, and members of a group; all others are turned away."""

    allowed_gid: int | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if not self._admits(connection):
            try:
                connection.setblocking(False)
                connection.send(b"HTTP/1.0 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                pass  # it did not wait for the answer
            connection.close()
            # waitress takes this for a client that went away between connect and accept, and goes on.
            raise OSError(errno.ECONNABORTED, "not permitted")
        return connection, address or ""

    def _admits(self, connection: socket.socket) -> bool:
        _, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in (0, os.geteuid()):
            return True
        if self.allowed_gid is None:
            return False
        if gid == self.allowed_gid:
            return True
        try:
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4096)
        except OSError:  # ERANGE: a member of more than a thousand groups, which we don't go through
            return False
        return self.allowed_gid in struct.unpack(f"{len(data) // 4}i", data)


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ReconcilerError(f"{path}: in the way, and not a socket", hint="remove it")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
        return
    except BlockingIOError:
        pass  # its queue is full: somebody is there
    finally:
        probe.close()
    raise BlockedError(f"{path}: another agent listens here", hint="use another --run directory, or stop it")


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
