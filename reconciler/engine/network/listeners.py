"""Who on this host already has a port: the listening sockets, and the processes behind them.

Reads only. A published port is translated before any socket sees the traffic, so a port that a process of the host
listens on must not be taken from it. Finding the process behind a socket means looking through every process, so it
is done for the sockets that are in the way, and only then.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.ports import PROTOCOLS, PortMapping
from reconciler.linux import netlink, sockdiag

_PROC = Path("/proc")
_FAMILIES = (int(socket.AF_INET), int(socket.AF_INET6))
_TCP_LISTEN, _UNCONNECTED = "0A", "07"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that owns a local port. `pid` and `process` are unknown until `identify` finds them.

    What holds a port without a socket (another instance's table) has the inode 0 and says in `process` what it is.
    """

    protocol: str
    address: IPv4Address | IPv6Address
    port: int
    v6_only: bool
    inode: int
    pid: int | None = None
    process: str = ""

    def blocks(self, wanted: PortMapping) -> bool:
        """Whether a socket for `wanted` could not be bound beside this one; `::` has IPv4 too unless it is v6 only."""
        if (self.protocol, self.port) != (wanted.protocol, wanted.published):
            return False
        address = self.address
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if address.version != wanted.version:
            return address.version == 6 and address.is_unspecified and not self.v6_only
        return address.is_unspecified or wanted.everywhere or wanted.host_ip == address

    @property
    def holder(self) -> str:
        """`nginx (pid 612)`, or what is known instead."""
        if self.pid is None and self.process:
            return self.process
        if self.pid is None:
            return "a process that can't be seen from here"
        return f"{self.process or 'a process'} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class PortConflict:
    """A wanted port and the socket that has it; `str` is the sentence for people."""

    wanted: PortMapping
    listener: Listener

    def __str__(self) -> str:
        return f"port {self.wanted} already used by {self.listener.holder}"


def listeners() -> tuple[Listener, ...]:
    """Every listening TCP and every unconnected UDP socket of this network namespace, without their processes."""
    found: list[Listener] = []
    with kernel("sock_diag"), netlink.Socket(netlink.SOCK_DIAG) as sock:
        for protocol, number in PROTOCOLS.items():
            for family in _FAMILIES:
                try:
                    answers = sock.dump(sockdiag.get_bound(family, number))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    # no tcp_diag or udp_diag in this kernel
                    found += read_proc_net(_proc_net(protocol, family), protocol)
                    continue
                for bound in (sockdiag.read_bound(number, body) for body in answers):
                    found.append(
                        Listener(protocol, _address(bound.address), bound.port, bound.v6_only, bound.inode)
                    )
    return tuple(sorted(found, key=lambda item: (item.protocol, item.port, str(item.address), item.inode)))


def conflicts(
    wanted: Iterable[PortMapping], found: Sequence[Listener] | None = None
) -> tuple[PortConflict, ...]:
    """The wanted ports that a socket of this host already has, each with the process that holds it."""
    found = listeners() if found is None else found
    by_port: dict[tuple[str, int], list[Listener]] = {}
    for listener in found:
        by_port.setdefault((listener.protocol, listener.port), []).append(listener)
    hits: list[tuple[PortMapping, Listener]] = []
    for mapping in sorted(wanted):
        same_port = by_port.get((mapping.protocol, mapping.published), ())
        hit = next((listener for listener in same_port if listener.blocks(mapping)), None)
        if hit is not None:
            hits.append((mapping, hit))
    named = identify([listener for _, listener in hits])
    return tuple(PortConflict(mapping, holder) for (mapping, _), holder in zip(hits, named, strict=True))


def identify(found: Sequence[Listener]) -> tuple[Listener, ...]:
    """The same sockets with the processes that hold them, where those can be seen."""
    missing = {listener.inode for listener in found if listener.pid is None and listener.inode}
    holders = _holders(missing) if missing else {}
    return tuple(
        replace(listener, pid=holders[listener.inode][0], process=holders[listener.inode][1])
        if listener.inode in holders
        else listener
        for listener in found
    )


def _holders(inodes: set[int]) -> dict[int, tuple[int, str]]:
    """inode -> (pid, name) of the first process that has the socket open."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    holders: dict[int, tuple[int, str]] = {}
    for pid in sorted(int(entry) for entry in os.listdir(_PROC) if entry.isdigit()):
        for inode in _sockets_of(pid, links):
            holders.setdefault(inode, (pid, _name(pid)))
        if len(holders) == len(links):
            break
    return holders


def _sockets_of(pid: int, links: dict[str, int]) -> list[int]:
    directory = _PROC / str(pid) / "fd"
    found = []
    try:
        for entry in os.listdir(directory):
            try:
                inode = links.get(os.readlink(directory / entry))
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # a file whose path is longer than a page
                    raise
                continue
            if inode is not None:
                found.append(inode)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found  # it ended meanwhile, or is not ours to see
    return found


def _name(pid: int) -> str:
    try:
        name = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "".join(character if character.isprintable() else "?" for character in name)


def _address(raw: bytes) -> IPv4Address | IPv6Address:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def _proc_net(protocol: str, family: int) -> str:
    suffix = "6" if family == socket.AF_INET6 else ""
    try:
        # thread-self: /proc/net is the namespace of the process's first thread.
        return (_PROC / "thread-self" / "net" / f"{protocol}{suffix}").read_text(encoding="ascii")
    except FileNotFoundError:
        return ""  # no IPv6 in this kernel


def read_proc_net(text: str, protocol: str) -> list[Listener]:
    """The listeners in the text of /proc/net/tcp and its relatives (proc(5)).

    The text does not say whether `::` also takes IPv4; the safe answer, that it does, is assumed.
    """
    state = _TCP_LISTEN if protocol == "tcp" else _UNCONNECTED
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != state:
            continue
        address, _, port = words[1].partition(":")
        # Each 32-bit word of the address is printed as a number in host order.
        raw = b"".join(
            int(address[start : start + 8], 16).to_bytes(4, sys.byteorder)
            for start in range(0, len(address), 8)
        )
        found.append(Listener(protocol, _address(raw), int(port, 16), False, int(words[9])))
    return found
