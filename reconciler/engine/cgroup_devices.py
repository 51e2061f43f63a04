"""The device rules of a cgroup, in force before its first process: version 1's lists, or a BPF program on version 2.

They are set once, when the cgroup is made: what a container may use is part of what it is.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reconciler.engine.devices import Rule
from reconciler.engine.hierarchies import Cgroup
from reconciler.errors import UnsupportedError
from reconciler.linux import bpf

_HINT: Final = "boot a kernel with CONFIG_CGROUP_BPF, or mount the version 1 cgroup controller devices"


def restrict(group: Cgroup, rules: Sequence[Rule], *, needed: bool) -> None:
    """Deny every device but those of `rules`; UnsupportedError where this kernel can't.

    Where it is not `needed` a kernel that can't is tolerated: a container that was given no device, and no capability
    to make a node of one, has none but the harmless ones anyway.
    """
    try:
        if "devices" in group.v1:
            _lists(group.v1["devices"], rules)
        elif group.v2 is not None:
            _program(group.v2, rules)
        elif needed:
            raise UnsupportedError("devices: the cgroup controller devices is in no hierarchy", hint=_HINT)
    except OSError as error:
        if needed:
            message = f"devices: this machine can't enforce who uses them: {error.strerror}"
            raise UnsupportedError(message, hint=_HINT) from error


def _lists(directory: Path, rules: Sequence[Rule]) -> None:
    _write(directory / "devices.deny", "a")
    allow = os.open(directory / "devices.allow", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for rule in rules:
            os.write(allow, str(rule).encode())  # the kernel takes one rule per write
    finally:
        os.close(allow)


def _write(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _program(directory: Path, rules: Sequence[Rule]) -> None:
    code = bpf.device_program(tuple((rule.kind, rule.major, rule.minor, rule.access) for rule in rules))
    bpf.guard_devices(str(directory), code)
