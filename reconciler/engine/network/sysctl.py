"""Forwarding: the one setting of the whole host that we change, recorded before the change and restored by clean-up.

Settings of our bridges die with them and need no record. A record belongs to one boot: after a reboot the host has its
own values again, and those are what counts. rp_filter is never touched.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from reconciler.engine.durable import replace_json
from reconciler.engine.network.diagnose import kernel

_SYSTEM = Path("/proc/sys")
FORWARDING = "net/ipv4/ip_forward"
# Changing ip_forward resets these (inet_forward_change, net/ipv4/devinet.c).
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"
_INTERFACES = "net/ipv4/conf"


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
    """net.ipv4.ip_forward, with a record of what this boot had before us."""

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

    def remember(self, *, inherited: str = "") -> None:
        """Write down, durably, what this boot has before our change; done already means nothing to do.

        `inherited` is what another instance found before it turned forwarding on, where one did.
        """
        with self._lock:
            if self.found() is not None:
                return
            value = read_value(FORWARDING)
            found = {FORWARDING: inherited or value}
            if value == "0":
                found[_REDIRECTS] = read_value(_REDIRECTS)
                found |= {name: "1" for name in _forwarding_interfaces()}
            replace_json(self._record, {"boot": _boot_id(), "found": found})

    def enable(self) -> None:
        """Turn forwarding on; `remember` comes first."""
        if not self.enabled():
            write_value(FORWARDING, "1")

    @staticmethod
    def enabled() -> bool:
        return read_value(FORWARDING) == "1"

    def restore(self) -> None:
        """Put back what was found, and forget it; succeeds where there is nothing to put back."""
        found = self.found()
        if found is not None and found.get(FORWARDING, "1") != read_value(FORWARDING):
            write_value(FORWARDING, found[FORWARDING])  # first: it resets the others
            for name, value in sorted(found.items()):
                if name != FORWARDING and exists(name):
                    write_value(name, value)
        self.forget()

    def forget(self) -> None:
        try:
            self._record.unlink(missing_ok=True)
        except IsADirectoryError:
            pass  # somebody else's: a record of ours would have replaced it


def _forwarding_interfaces() -> list[str]:
    """The settings of interfaces that forward although the host as a whole does not."""
    names = (f"{_INTERFACES}/{path.name}/forwarding" for path in (_SYSTEM / _INTERFACES).iterdir())
    return [name for name in names if "/all/" not in name and exists(name) and read_value(name) == "1"]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
