"""linux.resources as writes to control files of both cgroup versions, and device rules as lists or a BPF program.

`plan` is pure. A limit that this machine can't enforce is an error, never left out; what the specification calls
unlimited is written as such, because an update may lift a limit.
"""

import errno
import os

from reconciler.linux import bpf
from reconciler.shim import oci_cgroup
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.oci_cgroup import Cgroup
from reconciler.shim.oci_state import OciError

Write = tuple[str, str, str, str]  # controller, file, text, field

# What every container may use: the nodes that the specification has in each, terminals, and making nodes.
_DEFAULT_DEVICES = (
    (True, "c", None, None, "m"),
    (True, "b", None, None, "m"),
    (True, "c", 1, 3, "rwm"),
    (True, "c", 1, 5, "rwm"),
    (True, "c", 1, 7, "rwm"),
    (True, "c", 1, 8, "rwm"),
    (True, "c", 1, 9, "rwm"),
    (True, "c", 5, 0, "rwm"),
    (True, "c", 5, 1, "rwm"),
    (True, "c", 5, 2, "rwm"),
    (True, "c", 136, None, "rwm"),
)
Rule = tuple[bool, str, int | None, int | None, str]  # allow, kind (a, b, c), major, minor, access

_MEMORY_V1 = {
    "limit": "memory.limit_in_bytes",
    "swap": "memory.memsw.limit_in_bytes",
    "reservation": "memory.soft_limit_in_bytes",
    "kernelTCP": "memory.kmem.tcp.limit_in_bytes",
}
_CPU_V1 = (
    ("shares", "cpu.shares"),
    ("burst", "cpu.cfs_burst_us"),
    ("realtimePeriod", "cpu.rt_period_us"),
    ("realtimeRuntime", "cpu.rt_runtime_us"),
    ("idle", "cpu.idle"),
)
_THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


def plan(resources: Section, group: Cgroup) -> list[Write]:
    """Give the writes that `resources` come to in the hierarchies of `group`; raise ConfigError, OciError."""
    for key in ("network", "rdma"):
        section = resources.section(key)
        if any(value not in (None, [], {}) for value in section.values.values()):
            raise ConfigError(f"{section.name}: not supported")
    return [
        *_cpuset(resources.section("cpu"), group),
        *_memory(resources.section("memory"), group),
        *_cpu(resources.section("cpu"), group),
        *_pids(resources.section("pids"), group),
        *_io(resources.section("blockIO"), group),
        *_hugepages(resources, group),
        *_unified(resources.section("unified"), group),
    ]


def _asked(section: Section, *keys: str) -> list[tuple[str, int]]:
    return [(key, section.number(key)) for key in keys if section.raw(key) is not None]


def _refuse(section: Section, key: str, why: str) -> None:
    if section.raw(key) not in (None, False, 0):
        raise ConfigError(f"{section.name}.{key}: {why}")


def _limit(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(section: Section, group: Cgroup) -> list[Write]:
    for key in ("kernel", "useHierarchy") if "memory" not in group.controllers else ("kernel", "kernelTCP"):
        if section.raw(key) is True and key == "useHierarchy":
            continue  # as every kernel since 5.11 has it
        _refuse(section, key, "no kernel since 5.16 can do this on its own")
    limit = section.number("limit") if section.raw("limit") is not None else 0
    swap = section.number("swap") if section.raw("swap") is not None else 0
    where = section.name
    if "memory" not in group.controllers:
        writes = [("memory", _MEMORY_V1[key], str(value), f"{where}.{key}") for key, value in
                  _asked(section, "limit", "swap", "reservation", "kernelTCP") if value]  # fmt: skip
        if section.raw("swappiness") is not None:
            writes.append(
                ("memory", "memory.swappiness", str(section.number("swappiness")), f"{where}.swappiness")
            )
        if section.flag("disableOOMKiller"):
            writes.append(("memory", "memory.oom_control", "1", f"{where}.disableOOMKiller"))
        return writes
    _refuse(section, "disableOOMKiller", "cgroup version 2 can't do this")
    _refuse(section, "swappiness", "cgroup version 2 can't do this")
    writes = []
    if limit:
        writes.append(("memory", "memory.max", _limit(limit), f"{where}.limit"))
    if swap:
        if swap > 0 and limit <= 0:
            raise ConfigError(f"{where}.swap: needs a limit: it is memory and swap together")
        if 0 < swap < limit:
            raise ConfigError(f"{where}.swap: {swap}: less than the limit {limit}")
        writes.append(
            ("memory", "memory.swap.max", _limit(swap - limit if swap > 0 else -1), f"{where}.swap")
        )
    for _, value in _asked(section, "reservation"):
        if value:
            writes.append(("memory", "memory.low", _limit(value), f"{where}.reservation"))
    return writes


def _cpu(section: Section, group: Cgroup) -> list[Write]:
    where = section.name
    quota = section.number("quota") if section.raw("quota") is not None else 0
    period = section.number("period") if section.raw("period") is not None else 0
    if "cpu" not in group.controllers:
        writes = [("cpu", file, str(section.number(key)), f"{where}.{key}") for key, file in _CPU_V1
                  if section.raw(key) is not None and (key == "idle" or section.number(key))]  # fmt: skip
        if period:
            writes.append(("cpu", "cpu.cfs_period_us", str(period), f"{where}.period"))
        if quota:
            writes.append(("cpu", "cpu.cfs_quota_us", str(max(quota, -1)), f"{where}.quota"))
        return writes
    for key in ("realtimePeriod", "realtimeRuntime"):
        _refuse(section, key, "cgroup version 2 can't do this")
    writes = []
    idle = section.number("idle") if section.raw("idle") is not None else 0
    if section.raw("idle") is not None:
        writes.append(("cpu", "cpu.idle", str(idle), f"{where}.idle"))
    shares = section.number("shares") if section.raw("shares") is not None else 0
    if shares and idle != 1:
        # 2..262144 of version 1 onto 1..10000 of version 2, as every runtime does it
        weight = 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142
        writes.append(("cpu", "cpu.weight", str(weight), f"{where}.shares"))
    if quota or period:
        text = f"{'max' if quota <= 0 else quota}{f' {period}' if period else ''}"
        writes.append(("cpu", "cpu.max", text, f"{where}.quota"))
    for _, value in _asked(section, "burst"):
        writes.append(("cpu", "cpu.max.burst", str(value), f"{where}.burst"))
    return writes


def _cpuset(section: Section, group: Cgroup) -> list[Write]:
    keys = (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))
    return [
        ("cpuset", file, section.text(key), f"{section.name}.{key}")
        for key, file in keys
        if section.text(key)
    ]


def _pids(section: Section, group: Cgroup) -> list[Write]:
    value = section.number("limit") if section.raw("limit") is not None else 0
    return [("pids", "pids.max", _limit(value), f"{section.name}.limit")] if value else []


def _io(section: Section, group: Cgroup) -> list[Write]:
    where = section.name
    v2 = "io" in group.controllers
    controller = "io" if v2 else "blkio"
    writes = []
    for _, weight in _asked(section, "weight"):
        if weight:
            writes.append(_weight(group, controller, "", weight, f"{where}.weight"))
    if section.raw("leafWeight"):
        raise ConfigError(f"{where}.leafWeight: no kernel since 5.0 can do this")
    for entry in section.sections("weightDevice"):
        if entry.raw("leafWeight"):
            raise ConfigError(f"{entry.name}.leafWeight: no kernel since 5.0 can do this")
        writes.append(_weight(group, controller, f"{_number(entry)} ", entry.number("weight"), entry.name))
    for key, old, new in _THROTTLES:
        for entry in section.sections(key):
            rate = entry.number("rate")
            if v2:
                writes.append((controller, "io.max", f"{_number(entry)} {new}={rate or 'max'}", entry.name))
            else:
                writes.append((controller, old, f"{_number(entry)} {rate}", entry.name))
    return writes


def _number(entry: Section) -> str:
    return f"{entry.number('major')}:{entry.number('minor')}"


def _weight(group: Cgroup, controller: str, device: str, weight: int, field: str) -> Write:
    """A weight of 10 to 1000: by BFQ where the kernel has that, else by what is called io.weight (1 to 10000)."""
    suffix = "_device" if device and controller == "blkio" else ""
    for leaf in (f"{controller}.bfq.weight{suffix}", f"{controller}.weight{suffix}"):
        directory = group.v2 if controller == "io" else group.v1.get("blkio", "")
        if os.path.exists(f"{directory}/{leaf}"):
            if leaf == "io.weight":
                weight = 1 + (weight - 10) * 9999 // 990
            return controller, leaf, f"{device}{weight}", field
    return controller, f"{controller}.bfq.weight{suffix}", f"{device}{weight}", field


def _hugepages(resources: Section, group: Cgroup) -> list[Write]:
    leaf = "max" if "hugetlb" in group.controllers else "limit_in_bytes"
    writes = []
    for entry in resources.sections("hugepageLimits"):
        size = entry.text("pageSize")
        if not size.isalnum():
            raise ConfigError(f"{entry.name}.pageSize: {size!r}: expected such as 2MB")
        writes.append(("hugetlb", f"hugetlb.{size}.{leaf}", str(entry.number("limit")), entry.name))
    return writes


def _unified(section: Section, group: Cgroup) -> list[Write]:
    writes = []
    for file in section.values:
        if "/" in file or "." not in file or file.startswith("cgroup."):
            raise ConfigError(f"{section.name}: {file!r}: expected a file of a controller")
        writes.append((f"v2 {file.partition('.')[0]}", file, section.text(file), f"{section.name}.{file}"))
    return writes


def apply(resources: Section, group: Cgroup) -> None:
    """Write the limits; raise OciError naming the field that this machine can't enforce."""
    writes = plan(resources, group)
    # The total of version 1 may not fall below the limit, nor the limit rise above it; the quota likewise with its
    # period: what is refused at first may be right after the others
    again = []
    for write in writes:
        try:
            _write(write, group)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _explain(write, group, error) from error
            again.append(write)
    for write in again:
        try:
            _write(write, group)
        except OSError as error:
            raise _explain(write, group, error) from error


def _directory(controller: str, group: Cgroup) -> str:
    if controller.startswith("v2 "):
        return group.v2 if controller[3:] in group.controllers else ""
    return group.v2 if controller in group.controllers else group.v1.get(controller, "")


def _write(write: Write, group: Cgroup) -> None:
    controller, file, text, field = write
    directory = _directory(controller, group)
    if not directory:
        raise OciError(f"{field}: the cgroup controller {controller} is in no mounted hierarchy")
    oci_cgroup.write(f"{directory}/{file}", text)


def _explain(write: Write, group: Cgroup, error: OSError) -> OciError:
    controller, file, text, field = write
    where = f"{_directory(controller, group)}/{file}"
    if error.errno == errno.ENOENT:
        return OciError(f"{field}: this machine can't enforce it: {where} is missing")
    return OciError(f"{field}: {where}: {text}: {os.strerror(error.errno or 0).lower()}")


# --- devices --------------------------------------------------------------------------------------------------------


def rules(resources: Section) -> tuple[Rule, ...]:
    """Read linux.resources.devices, later ones beating earlier; those that every container has come last."""
    found: list[Rule] = []
    for entry in resources.sections("devices"):
        kind = entry.text("type") or "a"
        if kind not in ("a", "b", "c"):
            raise ConfigError(f"{entry.name}.type: {kind}: expected a, b or c")
        access = entry.text("access") or "rwm"
        if not set(access) <= set("rwm"):
            raise ConfigError(f"{entry.name}.access: {access}: expected some of rwm")
        numbers = []
        for key in ("major", "minor"):
            value = entry.number(key) if entry.raw(key) is not None else -1
            numbers.append(None if value < 0 else value)
        found.append((entry.flag("allow"), kind, numbers[0], numbers[1], access))
    return (*found, *_DEFAULT_DEVICES)


def restrict(group: Cgroup, wanted: tuple[Rule, ...]) -> None:
    """Deny every device but those of `wanted`; raise OciError where this machine can't."""
    everything = _everything(wanted)
    try:
        if "devices" in group.v1:
            _lists(group.v1["devices"], wanted)
        elif group.v2 and not everything:
            _program(group.v2, wanted)
        elif not everything:
            raise OciError("linux.resources.devices: the cgroup controller devices is in no hierarchy")
    except OSError as error:
        text = os.strerror(error.errno or 0).lower()
        raise OciError(f"linux.resources.devices: this machine can't enforce them: {text}") from error


def _everything(wanted: tuple[Rule, ...]) -> bool:
    """Whether a rule allows all devices, and none after it denies any."""
    free = False
    for rule in wanted:
        if not rule[0]:
            free = False
        elif _whole(rule):
            free = True
    return free


def _whole(rule: Rule) -> bool:
    return rule[1] == "a" and rule[2] is None and rule[3] is None and set(rule[4]) == set("rwm")


def _lists(directory: str, wanted: tuple[Rule, ...]) -> None:
    oci_cgroup.write(f"{directory}/devices.deny", "a")
    for rule in wanted:
        allow, kind, major, minor, access = rule
        for each in "bc" if kind == "a" and not _whole(rule) else (kind,):
            text = "a" if each == "a" else f"{each} {_star(major)}:{_star(minor)} {access}"
            oci_cgroup.write(f"{directory}/devices.{'allow' if allow else 'deny'}", text)


def _star(number: int | None) -> str:
    return "*" if number is None else str(number)


def _program(directory: str, wanted: tuple[Rule, ...]) -> None:
    bpf.guard_devices(directory, bpf.device_rules(wanted))
