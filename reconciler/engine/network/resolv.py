"""Names inside a container: its /etc/resolv.conf and /etc/hosts, as text, and the one way to change the latter.

Rendering is pure; `host_resolv_conf` reads the host's files, `update_hosts` changes one file. A container asks the
host's real upstream servers, because the host's own resolver on 127.0.0.53 is not reachable from inside.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

# Where the real servers are, in this order: systemd-resolved and NetworkManager put a stub on 127.0.0.x into
# /etc/resolv.conf and keep the servers behind it in files of their own.
HOST_FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
# Asked only where the host names no server that a container could reach (documented in docs/networking.md).
FALLBACK_SERVERS = (IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9"))
_MAX_SERVERS = 3  # MAXNS, resolv.h: the C library reads no more
_LARGEST_FILE = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a spec asks for instead of what the host has; an empty part asks for nothing.

    `search` of "." asks for no domain.
    """

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def render_resolv_conf(
    host_files: Iterable[str],
    asked: Asked = Asked(),
    *,
    fallback: Iterable[IPv4Address] = FALLBACK_SERVERS,
    stubs: bool = False,
    ipv6: bool = False,
) -> bytes:
    """The container's resolv.conf from the host's files: the first that names a usable server gives the servers.

    Loopback servers are dropped, but not with `stubs`, and those of IPv6, unless the container has that (`ipv6`).
    `search` and `options` come from the first file that has them, since a stub's file has the right ones.
    """
    servers: list[IPv4Address | IPv6Address] = []
    search: list[str] = []
    options: list[str] = []
    for text in host_files:
        file_servers, file_search, file_options = _read(text, stubs, ipv6=ipv6)
        servers = servers or file_servers
        search = search or file_search
        options = options or file_options
    chosen = asked.servers or [str(server) for server in servers or fallback]
    search = [name for name in asked.search if name != "."] if asked.search else search
    options = list(asked.options) or options
    lines = [f"nameserver {server}" for server in chosen[:_MAX_SERVERS]]
    if search:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "".join(f"{line}\n" for line in lines).encode()


def _read(
    text: str, stubs: bool, *, ipv6: bool
) -> tuple[list[IPv4Address | IPv6Address], list[str], list[str]]:
    """(servers, search list, options) of one resolv.conf(5); the last `search` or `domain` line wins."""
    servers: list[IPv4Address | IPv6Address] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].split()
        match words:
            case ["nameserver", server, *_]:
                try:
                    address = ip_address(server)
                except ValueError:
                    continue
                reached = address.version == 4 or (ipv6 and not address.is_link_local)
                reached = reached and not (address.is_loopback or address.is_unspecified)
                if (stubs or reached) and address not in servers:
                    servers.append(address)
            case ["search" | "domain", *names]:
                search = [name for name in names if _NAME.fullmatch(name)]
            case ["options", *found]:
                options += [option for option in found if option.isprintable() and option != "trust-ad"]
            case _:
                continue
    return servers, search, options


def host_resolv_conf(
    files: Iterable[Path] = HOST_FILES, *, asked: Asked = Asked(), ipv6: bool = False
) -> bytes:
    """`render_resolv_conf` of this host's files as they are now."""
    texts = []
    for path in files:
        try:
            with path.open("rb") as file:
                texts.append(file.read(_LARGEST_FILE).decode(errors="replace"))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return render_resolv_conf(texts, asked, ipv6=ipv6)


def render_hosts(
    members: Mapping[str, IPv4Address],
    own_name: str,
    hostname: str,
    extra: Iterable[tuple[str, str]] = (),
    *,
    replicas: bool = False,
    aliases: Mapping[str, Iterable[str]] = {},
    members6: Mapping[str, IPv6Address] = {},
) -> bytes:
    """The /etc/hosts of the container `own_name`: loopback, itself by host name, its app's containers, `extra`.

    With `replicas` a member NAME.2 answers to NAME, too, which then has several addresses (host.conf(5)). `aliases` are
    what members are called beside, `members6` their addresses of IPv6.
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for name, address in sorted(members.items(), key=lambda item: (item[0] != own_name, item[0])):
        names = [hostname, name] if name == own_name and hostname and hostname != name else [name]
        if replicas and "." in name:
            names.append(name.partition(".")[0])
        names += [alias for alias in aliases.get(name, ()) if alias not in names]
        lines.append(f"{address}\t{' '.join(names)}")
        if name in members6:
            lines.append(f"{members6[name]}\t{' '.join(names)}")
    return "".join(f"{line}\n" for line in lines).encode() + render_lines(extra)


def render_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A line of hosts(5) for each (name, address)."""
    return "".join(f"{address}\t{name}\n" for name, address in pairs).encode()


def update_hosts(path: Path, content: bytes) -> bool:
    """Make the file's content `content` in place, and return whether it was not; the inode stays.

    The one exception to replacing files: a bind mount pins the inode. A reader sees the old lines or the new ones; one
    that reads at the very moment may see the beginning of one followed by the end of the other, because a read beside a
    write is no snapshot. It never sees an empty file: a shorter content is first padded with empty lines and then cut.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size > _LARGEST_FILE:
            # Root inside may write to it, and make it as large as it likes: that is not what is padded here.
            size = len(content)
            os.ftruncate(fd, size)
        if size == len(content) and os.pread(fd, size, 0) == content:
            return False
        padded = content + b"\n" * (size - len(content))
        written = 0
        while written < len(padded):
            written += os.pwrite(fd, padded[written:], written)
        os.ftruncate(fd, len(content))
        return True
    finally:
        os.close(fd)
