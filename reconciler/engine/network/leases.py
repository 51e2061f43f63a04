"""Which subnet each network and which address each container has: the lease file, durable before anything uses it.

Written whole, under network/lock. Callers that come while a write is under way share the next one, because a durable
write takes milliseconds and fifty containers starting at once would wait in line for each other. A file that is missing
or can't be read is made again from what the kernel still has; a bad one is kept beside it for people to look at.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Generic, TypeVar

from reconciler.engine.durable import replace_json
from reconciler.engine.network.address import gateway, gateway6
from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.names import shown
from reconciler.errors import ReconcilerError
from reconciler.state.network import Network

_VERSION = 1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NetworkLease:
    """A network's subnet, and the addresses of its members by name; `aliases` are further names of theirs.

    `declared` is how it was declared when this was leased, None where that says nothing. `subnet6` is None where it has
    no IPv6; `addresses6` are of those members that have it.
    """

    subnet: IPv4Network
    addresses: Mapping[str, IPv4Address] = field(default_factory=dict)
    declared: Network | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subnet6: IPv6Network | None = None
    addresses6: Mapping[str, IPv6Address] = field(default_factory=dict)

    @property
    def gateway(self) -> IPv4Address:
        """The device's own address in it."""
        said = self.declared.gateway if self.declared is not None else ""
        return IPv4Address(said) if said else gateway(self.subnet)

    @property
    def gateway6(self) -> IPv6Address | None:
        """The device's own address of IPv6 in it."""
        if self.subnet6 is None:
            return None
        said = self.declared.gateway6 if self.declared is not None else ""
        return IPv6Address(said) if said else gateway6(self.subnet6)

    @property
    def internal(self) -> bool:
        return self.declared is not None and self.declared.internal

    @property
    def fixed(self) -> dict[str, IPv4Address]:
        """The addresses that members ask for, by name."""
        asked = self.declared.fixed if self.declared is not None else ()
        return {name: IPv4Address(address) for name, address in asked}

    @property
    def fixed6(self) -> dict[str, IPv6Address]:
        """The addresses of IPv6 that members ask for, by name."""
        asked = self.declared.fixed6 if self.declared is not None else ()
        return {name: IPv6Address(address) for name, address in asked}

    def addresses_of(self, names: Iterable[str]) -> list[IPv4Address | IPv6Address]:
        """Every address of these members, of both kinds."""
        return [held[name] for name in names for held in (self.addresses, self.addresses6) if name in held]

    def network(self, key: str) -> Network:
        """The network as it is."""
        return self.declared or Network(key)


Leases = dict[str, NetworkLease]


def encode(leases: Mapping[str, NetworkLease]) -> dict[str, object]:
    return {"version": _VERSION, "apps": {key: _encode(lease) for key, lease in leases.items()}}


def _encode(lease: NetworkLease) -> dict[str, object]:
    value: dict[str, object] = {
        "subnet": str(lease.subnet),
        "addresses": {name: str(address) for name, address in lease.addresses.items()},
    }
    if lease.declared is not None:
        value["declared"] = {
            name: item for name, item in asdict(lease.declared).items() if item and name != "key"
        }
    if lease.subnet6 is not None:
        value["subnet6"] = str(lease.subnet6)
        value["addresses6"] = {name: str(address) for name, address in lease.addresses6.items()}
    if lease.aliases:
        value["aliases"] = {name: list(names) for name, names in lease.aliases.items()}
    return value


def decode(data: bytes) -> Leases:
    """Read a lease file; ValueError for anything that is not one, also for an address that is leased twice."""
    value = json.loads(data)
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise ValueError("not a lease file of version 1")
    leases: Leases = {}
    try:
        for key, entry in value["apps"].items():
            leases[str(key)] = _decode(str(key), entry)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a lease file: {error!r}") from error
    return leases


def _decode(key: str, entry: Any) -> NetworkLease:
    subnet = IPv4Network(entry["subnet"])
    addresses = {str(name): IPv4Address(text) for name, text in entry["addresses"].items()}
    if len(set(addresses.values())) != len(addresses):
        raise ValueError(f"an address of {shown(key)} is leased twice")
    if not all(address in subnet for address in addresses.values()):
        raise ValueError(f"an address of {shown(key)} is outside its subnet {subnet}")
    subnet6 = IPv6Network(entry["subnet6"]) if "subnet6" in entry else None
    addresses6 = {str(name): IPv6Address(text) for name, text in entry.get("addresses6", {}).items()}
    if len(set(addresses6.values())) != len(addresses6):
        raise ValueError(f"an IPv6 address of {shown(key)} is leased twice")
    if any(subnet6 is None or address not in subnet6 for address in addresses6.values()):
        raise ValueError(f"an IPv6 address of {shown(key)} is outside its subnet {subnet6}")
    said = entry.get("declared")
    declared = None if said is None else _declared(key, said)
    aliases = {str(name): tuple(map(str, names)) for name, names in entry.get("aliases", {}).items()}
    return NetworkLease(subnet, addresses, declared, aliases, subnet6, addresses6)


def _declared(key: str, said: Any) -> Network:
    gateway, gateway6 = str(said.get("gateway", "")), str(said.get("gateway6", ""))
    return Network(
        key,
        subnet=str(said.get("subnet", "")),
        gateway=gateway and str(IPv4Address(gateway)),
        internal=said.get("internal") is True,
        fixed=tuple([(str(name), str(IPv4Address(one))) for name, one in said.get("fixed", ())]),
        labels=tuple([(str(name), str(label)) for name, label in said.get("labels", ())]),
        ipv6=said.get("ipv6") is True,
        subnet6=str(said.get("subnet6", "")),
        gateway6=gateway6 and str(IPv6Address(gateway6)),
        fixed6=tuple([(str(name), str(IPv6Address(one))) for name, one in said.get("fixed6", ())]),
    )


class _Change(Generic[_T]):
    """One caller's change, waiting for the write that makes it durable."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[Leases], _T]) -> None:
        self.function = function
        self.done = False
        self.error: BaseException | None = None
        self.result: _T | None = None


class LeaseFile:
    """The leases on disk. Safe to use from several threads and, by the lock file, from several processes."""

    def __init__(self, path: Path, lock: Path, recover: Callable[[], Leases]) -> None:
        self._path = path
        self._lock_path = lock
        self._recover = recover
        self._queue: list[_Change[object]] = []
        self._queue_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._known: tuple[tuple[int, int, int], Leases] | None = None

    def read(self) -> Mapping[str, NetworkLease]:
        """The leases now; changes nothing. Where the file is missing or bad: what the kernel still has."""
        known = self._known
        stamp = self._stamp()
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            leases = decode(self._path.read_bytes())
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return self._recover()
        self._known = (stamp, leases) if stamp is not None and stamp == self._stamp() else None
        return leases

    def change(self, function: Callable[[Leases], _T]) -> _T:
        """Let `function` change the leases and return its result once the change is durable.

        It gets a copy; where it raises, nothing of it is kept, and its error is raised here.
        """
        change = _Change(function)
        with self._queue_lock:
            self._queue.append(change)  # type: ignore[arg-type]  # the queue forgets what each one returns
        with self._commit_lock:
            if not change.done:
                self._commit()
        if change.error is not None:
            raise change.error
        return change.result  # type: ignore[return-value]  # done without an error: `function` returned it

    def remove(self) -> None:
        """Delete the file; succeeds if it is gone."""
        with self._commit_lock, self._locked():
            try:
                self._path.unlink(missing_ok=True)
            except IsADirectoryError:
                pass  # somebody else's: a lease of ours would have replaced it
            self._known = None

    def _commit(self) -> None:
        with self._queue_lock:
            batch, self._queue = self._queue, []
        try:
            with kernel("network leases"), self._locked():
                self._apply(batch)
        except BaseException as error:
            for change in batch:
                change.error = change.error or error
            raise
        finally:
            for change in batch:
                change.done = True

    def _apply(self, batch: list[_Change[object]]) -> None:
        before = self._read_or_set_aside()
        leases = dict(before)
        for change in batch:
            candidate = dict(leases)
            try:
                change.result = change.function(candidate)
            except ReconcilerError as error:  # raised again in the caller whose change it is
                change.error = error
            else:
                leases = candidate
        if leases != before or self._known is None:
            replace_json(self._path, encode(leases))
            stamp = self._stamp()
            self._known = (stamp, leases) if stamp is not None else None

    def _read_or_set_aside(self) -> Mapping[str, NetworkLease]:
        try:
            return decode(self._path.read_bytes())
        except FileNotFoundError:
            self._known = None
        except (IsADirectoryError, ValueError):
            self._known = None
            self._path.rename(self._path.with_name(f"{self._path.name}.corrupt-{time.time_ns()}"))
        return self._recover()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
