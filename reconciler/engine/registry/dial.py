"""How connections to registries are made: to which addresses, and until when.

A name is resolved once and the very address that was checked is dialled, so that a name which answers differently the
second time (DNS rebinding) gains nothing. Every read on the calling thread ends at the deadline that `Clock` holds,
because a peer that sends one byte per second keeps any single read alive.
"""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import httpcore

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def kind_of(address: IPAddress) -> str:
    """Sort an address: public, private, loopback, link-local, or never (nothing that may be dialled).

    An IPv4 address wrapped into an IPv6 one is sorted as what it is.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return kind_of(inner)
    if address.is_unspecified or address.is_multicast:
        return "never"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "public" if address.is_global else "private"


def forbid(host: str, allowed: Callable[[str, str], bool]) -> None:
    """Raise ForbiddenAddressError where a host is an address, or localhost, that `allowed` does not let through.

    For what a proxy will dial: there names are its own to resolve.
    """
    try:
        kind = kind_of(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        name = host.rstrip(".")
        kind = "loopback" if name == "localhost" or name.endswith(".localhost") else "public"
    if kind == "never" or not allowed(host, kind):
        raise ForbiddenAddressError(f"{host} is a {kind} address: refused")


class Clock(threading.local):
    """The deadline of what the current thread is doing, in monotonic seconds; None for no deadline."""

    deadline: float | None = None

    def left(self, timeout: float | None) -> float | None:
        """How long one operation may take; raises httpcore.ReadTimeout when the time is up."""
        if self.deadline is None:
            return timeout
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the registry took too long")
        return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation also ends at the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._clock.left(timeout))
        return _Stream(inner, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Dialler(httpcore.NetworkBackend):
    """Connects to a host's addresses in turn, but only to those that `allowed` lets through.

    `allowed` gets the host name and the kind of the address. `seen` holds the kinds that were connected to.
    """

    def __init__(self, clock: Clock, allowed: Callable[[str, str], bool]) -> None:
        self._inner = httpcore.SyncBackend()
        self._clock = clock
        self._allowed = allowed
        self.seen: set[str] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"name {host}: {error}") from error
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        failure: Exception = httpcore.ConnectError(f"name {host}: no addresses")
        for address in addresses:
            kind = kind_of(ipaddress.ip_address(address.partition("%")[0]))
            if kind == "never" or not self._allowed(host, kind):
                failure = ForbiddenAddressError(f"{host} is the {kind} address {address}: refused")
                continue
            try:
                inner = self._inner.connect_tcp(
                    address, port, self._clock.left(timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            self.seen.add(kind)
            return _Stream(inner, self._clock)
        raise failure

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise ForbiddenAddressError(f"{path}: a unix socket: refused")


class ForbiddenAddressError(Exception):
    """A name led to an address that must not be dialled from where it was given."""
