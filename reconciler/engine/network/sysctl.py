"""Forwarding: the one setting of the whole host that we change, recorded before the change and restored by clean-up.

It is changed for IPv4 with the first network, for IPv6 with the first that has it. Settings of our bridges die with
them and need no record. A record belongs to one boot: after a reboot the host has its own values again, and those are
what counts. rp_filter is never touched.

For IPv4 the setting says what each link does. For IPv6 it says that the host forwards at all; what it says of a link is
whether that is a router's, and a router's link does not hear what other routers say: that is how a host loses its way
out when a container engine turns forwarding on. So here the links stay what they were, and while the setting is
written, which makes the kernel forget the routes that were learned, they say that they want to keep these
(accept_ra=2, rt6_purge_dflt_routers in net/ipv6/route.c).
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from reconciler.engine.durable import replace_json
from reconciler.engine.network.diagnose import kernel

_SYSTEM = Path("/proc/sys")
FORWARDING = "net/ipv4/ip_forward"
# Changing ip_forward resets these (inet_forward_change, net/ipv4/devinet.c).
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"
_INTERFACES = "net/ipv4/conf"
FORWARDING6 = "net/ipv6/conf/all/forwarding"
_INTERFACES6 = "net/ipv6/conf"
_LISTENS, _LISTENS_ALWAYS = "1", "2"  # accept_ra
NO_KERNEL_IPV6 = "boot without ipv6.disable=1, with a kernel that has CONFIG_IPV6, or write ipv6: false"


def read_value(name: str) -> str:
    """A kernel setting; name with slashes, because interface names may hold dots."""
    with kernel(f"sysctl {name}"):
        return (_SYSTEM / name).read_text(encoding="ascii").strip()


def write_value(name: str, value: str) -> None:
    with kernel(f"sysctl {name}"):
        (_SYSTEM / name).write_text(value, encoding="ascii")


def exists(name: str) -> bool:
    return (_SYSTEM / name).exists()


class Forwarding:
    """net.ipv4.ip_forward and its like for IPv6, with a record of what this boot had before us."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._lock = threading.Lock()

    def found(self) -> Mapping[str, str] | None:
        """The values found before our change in this boot, or None where we changed nothing in it yet."""
        try:
            record = json.loads(self._record.read_bytes())
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("boot") != _boot_id():
            return None
        found = record.get("found")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else None

    def remember(self, *, inherited: str = "", inherited6: str = "", ipv6: bool = False) -> None:
        """Write down, durably, what this boot has before our change; done already means nothing to do.

        `inherited` is what another instance found before it turned forwarding on, where one did.
        """
        with self._lock:
            found = dict(self.found() or {})
            before = len(found)
            if FORWARDING not in found:
                value = read_value(FORWARDING)
                found[FORWARDING] = inherited or value
                if value == "0":
                    found[_REDIRECTS] = read_value(_REDIRECTS)
                    found |= {name: "1" for name in _forwarding_interfaces(_INTERFACES)}
            if ipv6 and FORWARDING6 not in found:
                value = read_value(FORWARDING6)
                found[FORWARDING6] = inherited6 or value
                if value == "0":
                    found |= {name: "1" for name in _forwarding_interfaces(_INTERFACES6)}
                    # What a crash may leave, see _keeping_routes
                    found |= {name: _LISTENS for name in _listening()}
            if len(found) != before:
                replace_json(self._record, {"boot": _boot_id(), "found": found})

    def enable(self, *, ipv6: bool = False) -> None:
        """Turn forwarding on; `remember` comes first."""
        if read_value(FORWARDING) != "1":
            write_value(FORWARDING, "1")
        if ipv6 and read_value(FORWARDING6) != "1":
            with _keeping_routes():
                routers = {*_forwarding_interfaces(_INTERFACES6)}
                write_value(FORWARDING6, "1")
                for name in _forwarding_interfaces(_INTERFACES6):
                    if name not in routers:
                        write_value(name, "0")

    @staticmethod
    def enabled(*, ipv6: bool = False) -> bool:
        return read_value(FORWARDING) == "1" and (not ipv6 or read_value(FORWARDING6) == "1")

    @staticmethod
    def off() -> str:
        """The setting that is not on."""
        return FORWARDING if read_value(FORWARDING) != "1" else FORWARDING6

    def restore(self) -> None:
        """Put back what was found, and forget it; succeeds where there is nothing to put back."""
        found = self.found() or {}
        if FORWARDING in found and found[FORWARDING] != read_value(FORWARDING):
            write_value(FORWARDING, found[FORWARDING])  # first: it resets the others
            _write_all({name: value for name, value in found.items() if name.startswith("net/ipv4/")})
        for name in found:
            if name.endswith("/accept_ra") and exists(name) and read_value(name) == _LISTENS_ALWAYS:
                write_value(name, found[name])
        if FORWARDING6 in found and found[FORWARDING6] != read_value(FORWARDING6):
            with _keeping_routes():
                write_value(FORWARDING6, found[FORWARDING6])
                _write_all({name: value for name, value in found.items() if name.startswith(_INTERFACES6)})
        self.forget()

    def forget(self) -> None:
        try:
            self._record.unlink(missing_ok=True)
        except IsADirectoryError:
            pass  # somebody else's: a record of ours would have replaced it


def has_ipv6() -> bool:
    """Whether this kernel has IPv6, and was not told to do without."""
    return exists(FORWARDING6)


def ipv6_fault() -> str:
    """Why this host can have no network with IPv6, or an empty string."""
    if not has_ipv6():
        return "this device has no IPv6: its kernel has none, or was booted with ipv6.disable=1"
    if read_value(f"{_INTERFACES6}/all/disable_ipv6") == "1":
        return "this device has IPv6 switched off: net.ipv6.conf.all.disable_ipv6 is 1"
    return ""


def _write_all(values: Mapping[str, str]) -> None:
    for name, value in sorted(values.items()):
        if name.endswith(("/forwarding", "/accept_redirects")) and name != FORWARDING6 and exists(name):
            write_value(name, value)


@contextmanager
def _keeping_routes() -> Iterator[None]:
    """Have every link that listens to routers keep what it learned while something inside says that a link forwards."""
    listening = list(_listening())
    for name in listening:
        write_value(name, _LISTENS_ALWAYS)
    try:
        yield
    finally:
        for name in listening:
            if exists(name):
                write_value(name, _LISTENS)


def _listening() -> Iterator[str]:
    """The settings of links that hear router advertisements unless they are a router's."""
    for path in (_SYSTEM / _INTERFACES6).iterdir():
        name = f"{_INTERFACES6}/{path.name}/accept_ra"
        if path.name not in ("all", "default") and exists(name) and read_value(name) == _LISTENS:
            yield name


def _forwarding_interfaces(family: str) -> list[str]:
    """The settings of interfaces that forward although the host as a whole does not."""
    names = (f"{family}/{path.name}/forwarding" for path in (_SYSTEM / family).iterdir())
    return [name for name in names if "/all/" not in name and exists(name) and read_value(name) == "1"]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
