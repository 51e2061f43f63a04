"""What a container asks of the kernel beyond its resources: sysctls. Pure, as `spec.values` is."""

import re
from typing import Annotated, Final

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault, Faults
from reconciler.spec.marks import quote
from reconciler.spec.values import TEXTS, describe, written

_SYSCTL: Final = re.compile(r"[a-z0-9_][-a-zA-Z0-9_]*(?:[./][-a-zA-Z0-9_]+)+", re.ASCII)
# Those of the IPC namespace (ipc_namespaces(7)) and all of the network namespace's; the rest is the whole device's.
_IPC: Final = frozenset(
    {
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shm_rmid_forced", "kernel.shmall",
        "kernel.shmmax", "kernel.shmmni",
    }
)  # fmt: skip
_LONGEST: Final = 4096


def sysctls(value: object) -> dict[str, str]:
    """Return kernel settings by their dotted name; only those of a namespace of the container's own."""
    if not isinstance(value, dict):
        raise Fault(f"must be a map, not {describe(value)}")
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for key, item in value.items():
        try:
            name = _sysctl(str(key))
            if name in found:
                raise Fault(f"the sysctl {quote(name)} is set a second time", subject=False, at_key=True)
            shown = written(item)
            if len(shown) > _LONGEST or not shown.isprintable():
                raise Fault("must be one line")
            found[name] = shown
        except Fault as fault:
            fault.path = (key,)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return found


def _sysctl(key: str) -> str:
    """Return the name with dots between its parts, as sysctl(8) does; a dot inside a part is then a slash."""
    if _SYSCTL.fullmatch(key) is None:
        raise Fault(
            f"{quote(key)} is no name of a sysctl",
            subject=False,
            at_key=True,
            hint="for example net.core.somaxconn",
        )
    first = next(character for character in key if character in "./")
    name = key if first == "." else key.translate(str.maketrans("./", "/."))
    if name.startswith("net.") and name.split(".")[3:4] == ["eth0"]:
        raise Fault(
            f"{quote(key)}: there is no eth0 yet when sysctls are set",
            subject=False,
            at_key=True,
            hint=f"write {'.'.join([*name.split('.')[:3], 'default', *name.split('.')[4:]])}",
        )
    if not name.startswith(("net.", "fs.mqueue.")) and name not in _IPC:
        raise Fault(
            f"the sysctl {quote(key)} belongs to the whole device, not to a container",
            subject=False,
            at_key=True,
            hint="allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*; set others in /etc/sysctl.d",
        )
    return name


Sysctls = Annotated[dict[str, str], PlainValidator(sysctls), WithJsonSchema(TEXTS)]
