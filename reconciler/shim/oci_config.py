"""Somebody else's config.json: what shim.config reads, and beside it all that the engine never asks for.

Pure. The engine's reader stays as strict as it is: what only the OCI command line can do is read here and taken out
before that reader looks, and put back into its result. Annotations of this program's own mean nothing here: whoever may
annotate a container must not thereby mount directories of the host.
"""

from reconciler.linux import capability, mount, namespace, scheduling
from reconciler.shim import config, oci_hooks
from reconciler.shim.config import Mount, Prepared
from reconciler.shim.fields import PREFIX, ConfigError, Section, clean
from reconciler.shim.users import Mapping

_OWN = ("user", "time")  # namespaces that shim.config does not know
_LAST_PROPAGATION = {
    "shared": (mount.MS_SHARED, False),
    "rshared": (mount.MS_SHARED, True),
    "unbindable": (mount.MS_UNBINDABLE, False),
    "runbindable": (mount.MS_UNBINDABLE, True),
}
_REFUSED = {
    ("", "solaris"): "this is Linux",
    ("", "windows"): "this is Linux",
    ("", "vm"): "there is no virtual machine here",
    ("", "zos"): "this is Linux",
    ("linux", "intelRdt"): "Intel RDT is not supported",
    ("linux", "netDevices"): "moving network devices is not supported",
    ("linux", "memoryPolicy"): "memory policies are not supported",
    ("linux", "mountLabel"): "SELinux labels of mounts are not supported",
}


class Scheduler:
    """process.scheduler: the arguments of sched_setattr(2)."""

    __slots__ = ("deadline", "flags", "nice", "period", "policy", "priority", "runtime")

    def __init__(self, section: Section) -> None:
        policy = section.text("policy")
        if policy not in scheduling.POLICIES:
            raise ConfigError(f"{section.name}.policy: {policy}: no such policy")
        self.policy = scheduling.POLICIES[policy]
        self.flags = 0
        for flag in section.strings("flags"):
            if flag not in scheduling.FLAGS:
                raise ConfigError(f"{section.name}.flags: {flag}: no such flag")
            self.flags |= scheduling.FLAGS[flag]
        self.nice = section.number("nice")
        self.priority = section.number("priority")
        self.runtime = section.number("runtime")
        self.deadline = section.number("deadline")
        self.period = section.number("period")


class Confinement:
    """What a process gets beyond shim.program: how it is scheduled, and its labels. The same for init and for exec."""

    __slots__ = ("apparmor", "final_cpus", "first_cpus", "io_priority", "personality", "scheduler", "selinux")

    def __init__(self, process: Section, linux: Section) -> None:
        self.apparmor = process.text("apparmorProfile")
        self.selinux = process.text("selinuxLabel")
        asked = process.section("scheduler")
        self.scheduler = Scheduler(asked) if asked.values else None
        self.io_priority = _io_priority(process.section("ioPriority"))
        domain = linux.section("personality")
        self.personality: int | None = None
        if domain.values:
            name = domain.text("domain")
            if name not in scheduling.PERSONALITIES:
                raise ConfigError(f"{domain.name}.domain: {name}: expected LINUX or LINUX32")
            if domain.raw("flags"):
                raise ConfigError(f"{domain.name}.flags: not supported")
            self.personality = scheduling.PERSONALITIES[name]
        affinity = process.section("execCPUAffinity")
        self.first_cpus = cpus(affinity.text("initial"), f"{affinity.name}.initial")
        self.final_cpus = cpus(affinity.text("final"), f"{affinity.name}.final")


class Bundle:
    """A bundle of somebody else's. `prepared` has no cgroup yet; `joins` are its namespaces that it does not make."""

    __slots__ = (
        "cgroups_path",
        "confinement",
        "dropped",
        "gid_map",
        "hooks",
        "id_mapped",
        "joined_pid",
        "joined_user",
        "new_time",
        "new_user",
        "prepared",
        "propagation",
        "resources",
        "time_offsets",
        "uid_map",
    )

    prepared: Prepared
    hooks: oci_hooks.Hooks
    confinement: Confinement
    new_user: bool
    uid_map: Mapping
    gid_map: Mapping
    joined_user: str
    joined_pid: str
    new_time: bool
    time_offsets: tuple[tuple[str, int, int], ...]  # clock, seconds, nanoseconds
    id_mapped: dict[Mount, tuple[Mapping, Mapping, bool]]  # uids, gids, the whole tree
    propagation: tuple[int, bool] | None  # of the root once it is one, and whether of all in it
    cgroups_path: str
    resources: Section
    dropped: tuple[str, ...]  # capabilities that are asked for and can't be had


def read(document: dict[str, object], bundle: str, held: int) -> Bundle:
    """Read a config.json whose relative paths mean the directory `bundle`; raise ConfigError naming the field.

    `held` are the capabilities of whoever makes the container; they do not matter in another user namespace.
    """
    top, linux, process = (Section(document, key) for key in ("", "linux", "process"))
    version = top.text("ociVersion")
    if version.partition(".")[0] != "1":
        raise ConfigError(f"ociVersion: {version or 'missing'}: expected 1.x")
    for (section, key), why in _REFUSED.items():
        if Section(document, section).raw(key) not in (None, "", [], {}):
            raise ConfigError(f"{section + '.' if section else ''}{key}: {why}")
    _check(top, linux)
    result = Bundle()
    result.hooks = oci_hooks.read(document)
    result.confinement = Confinement(process, linux)
    result.cgroups_path = linux.text("cgroupsPath")
    result.resources = linux.section("resources")
    _user(result, linux)
    _time(result, linux)
    result.joined_pid = _path_of(linux, "pid")
    propagation = linux.text("rootfsPropagation")
    result.propagation = _LAST_PROPAGATION.get(propagation)
    reduced = _reduced(document, linux, process)
    given, result.dropped = grantable(process, -1 if result.new_user or result.joined_user else held)
    reduced["process"] = {**Section(reduced, "process").values, "capabilities": given}
    prepared = config.prepare(reduced, bundle)
    result.prepared = prepared
    if not prepared.rootfs.startswith("/") or not Section(document, "root").text("path"):
        raise ConfigError("root.path: missing")
    if result.new_user:
        prepared.clone_flags |= namespace.CLONE_NEWUSER
    if clock := _path_of(linux, "time"):
        prepared.joins = (*prepared.joins, (namespace.CLONE_NEWTIME, clock))
    prepared.hostname, prepared.domainname = top.text("hostname"), top.text("domainname")
    if (prepared.hostname or prepared.domainname) and not _has(prepared, namespace.CLONE_NEWUTS):
        raise ConfigError("hostname: needs a uts namespace")
    for entry in linux.sections("devices"):
        made = config.device(entry)
        if not made[0].startswith("/dev/"):
            prepared.devices = (*prepared.devices, made)
            prepared.powerless = False
    result.id_mapped = dict(_id_mapped(top, prepared.mounts, result))
    return result


def _check(top: Section, linux: Section) -> None:
    """Hold the bundle to what the specification says it must be, where nobody else would notice."""
    for key, value in top.section("annotations").values.items():
        if not key or not isinstance(value, str):
            raise ConfigError(f"annotations: {key!r}: expected a name and a string")
    for key in ("maskedPaths", "readonlyPaths"):
        for path in linux.strings(key):
            if not path.startswith("/"):
                raise ConfigError(f"linux.{key}: {path!r}: expected an absolute path")
    for entry in linux.sections("namespaces"):
        path = entry.text("path")
        if path and not path.startswith("/"):
            raise ConfigError(f"{entry.name}.path: {path!r}: expected an absolute path")
    limits = [entry.text("type") for entry in top.section("process").sections("rlimits")]
    for name in limits:
        if limits.count(name) > 1:
            raise ConfigError(f"process.rlimits: {name} is there twice")


def grantable(process: Section, held: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Leave out of process.capabilities what the kernel does not know or the caller has not; give also their names.

    The specification wants a warning, not a failure (config.md, "Linux Process", capabilities).
    """
    section = process.section("capabilities")
    dropped: set[str] = set()
    given: dict[str, object] = {}
    for kind in section.values:
        names = section.strings(kind)
        had = [name for name in names if name in capability.NUMBERS and held >> capability.NUMBERS[name] & 1]
        dropped.update(set(names) - set(had))
        given[kind] = had
    return given, tuple(sorted(dropped))


def _has(prepared: Prepared, flag: int) -> bool:
    return bool(prepared.clone_flags & flag) or any(flag == joined for joined, _ in prepared.joins)


def _reduced(document: dict[str, object], linux: Section, process: Section) -> dict[str, object]:
    """Give what is left for shim.config to read."""
    reduced: dict[str, object] = {
        key: value for key, value in document.items() if key not in ("hooks", "hostname")
    }
    reduced.pop("domainname", None)
    annotations = Section(document, "annotations").values
    reduced["annotations"] = {key: value for key, value in annotations.items() if not key.startswith(PREFIX)}
    taken = ("uidMappings", "gidMappings", "timeOffsets", "personality")
    kept = {key: value for key, value in linux.values.items() if key not in taken}
    if kept.get("rootfsPropagation") in _LAST_PROPAGATION:
        kept.pop("rootfsPropagation")
    kept["namespaces"] = [
        entry.values
        for entry in linux.sections("namespaces")
        if entry.text("type") not in _OWN and not (entry.text("type") == "pid" and entry.text("path"))
    ]
    kept["devices"] = [
        entry.values for entry in linux.sections("devices") if clean(entry.text("path")).startswith("/dev/")
    ]
    reduced["linux"] = kept
    beyond = ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority", "execCPUAffinity")
    reduced["process"] = {key: value for key, value in process.values.items() if key not in beyond}
    reduced["mounts"] = [_without_ids(entry) for entry in Section(document, "").sections("mounts")]
    return reduced


def _without_ids(entry: Section) -> dict[str, object]:
    kept = {key: value for key, value in entry.values.items() if key not in ("uidMappings", "gidMappings")}
    kept["options"] = [option for option in entry.strings("options") if option not in ("idmap", "ridmap")]
    return kept


def _path_of(linux: Section, kind: str) -> str:
    for entry in linux.sections("namespaces"):
        if entry.text("type") == kind:
            return entry.text("path")
    return ""


def _wants(linux: Section, kind: str) -> bool:
    found = [entry for entry in linux.sections("namespaces") if entry.text("type") == kind]
    if len(found) > 1:
        raise ConfigError(f"{found[1].name}.type: {kind} is there twice")
    return bool(found)


def _user(result: Bundle, linux: Section) -> None:
    wanted = _wants(linux, "user")
    result.joined_user = _path_of(linux, "user")
    result.new_user = wanted and not result.joined_user
    result.uid_map = mapping(linux, "uidMappings")
    result.gid_map = mapping(linux, "gidMappings")
    if result.new_user and not (result.uid_map and result.gid_map):
        raise ConfigError("linux.uidMappings: a new user namespace needs uidMappings and gidMappings")
    if (result.uid_map or result.gid_map) and not wanted:
        raise ConfigError("linux.uidMappings: needs a user namespace")


def _time(result: Bundle, linux: Section) -> None:
    result.new_time = _wants(linux, "time") and not _path_of(linux, "time")
    offsets = linux.section("timeOffsets")
    found = []
    for clock in offsets.values:
        if clock not in ("monotonic", "boottime"):
            raise ConfigError(f"linux.timeOffsets.{clock}: expected monotonic or boottime")
        entry = offsets.section(clock)
        found.append((clock, entry.number("secs"), entry.number("nanosecs")))
    if found and not result.new_time:
        raise ConfigError("linux.timeOffsets: needs a new time namespace")
    result.time_offsets = tuple(found)


def mapping(section: Section, key: str) -> Mapping:
    """Read a list of mappings of ids; raise ConfigError."""
    found = []
    for entry in section.sections(key):
        inside, outside, size = (entry.number(name) for name in ("containerID", "hostID", "size"))
        top = 2**32 - 1
        if not (0 <= inside < top and 0 <= outside < top and 0 < size <= top - max(inside, outside)):
            raise ConfigError(f"{entry.name}: {inside} {outside} {size}: out of range")
        found.append((inside, outside, size))
    return tuple(found)


def host_id(ids: Mapping, inside: int) -> int | None:
    """Give the host's id of one inside, None where it has none."""
    return next((host + inside - first for first, host, size in ids if first <= inside < first + size), None)


def _id_mapped(
    top: Section, mounts: tuple[Mount, ...], result: Bundle
) -> list[tuple[Mount, tuple[Mapping, Mapping, bool]]]:
    found = []
    for entry, made in zip(top.sections("mounts"), mounts, strict=True):
        options = entry.strings("options")
        uids, gids = mapping(entry, "uidMappings"), mapping(entry, "gidMappings")
        if not (uids or gids or "idmap" in options or "ridmap" in options):
            continue
        if made.kind != "bind":
            raise ConfigError(f"{entry.name}.uidMappings: only bind mounts can be id-mapped")
        if bool(uids) != bool(gids):
            raise ConfigError(f"{entry.name}: uidMappings and gidMappings go together")
        if not uids:
            uids, gids = result.uid_map, result.gid_map
        if not uids:
            raise ConfigError(f"{entry.name}.options: idmap needs uidMappings, or those of the container")
        found.append((made, (uids, gids, "ridmap" in options)))
    return found


def _io_priority(section: Section) -> tuple[int, int] | None:
    if not section.values:
        return None
    kind, level = section.text("class"), section.number("priority")
    if kind not in scheduling.IO_CLASSES:
        raise ConfigError(f"{section.name}.class: {kind}: no such class")
    if not 0 <= level <= 7:
        raise ConfigError(f"{section.name}.priority: {level}: expected 0 to 7")
    return scheduling.IO_CLASSES[kind], level


def cpus(text: str, where: str) -> tuple[int, ...]:
    """Read a list of processors such as `0-3,7`; raise ConfigError."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1 << 16):
            raise ConfigError(f"{where}: {text!r}: expected numbers and ranges of them")
        found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found))
