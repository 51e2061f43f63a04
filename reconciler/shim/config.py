"""A bundle's config.json (OCI runtime-spec 1.0.2 and later), read and checked once, before the clone.

Everything that can be refused without touching a mount is refused here, by name: what this program can't do, it does
not leave out silently. Nothing here reads a file or changes anything; the result is plain values, so that the child
after the clone parses and allocates as little as can be.

Besides the specification, these annotations are understood (all with the prefix `dev.reconciler.`):
  name                 the container's full name, `app/container`; its presence marks a bundle of the engine
  events               the file of events, to which shim.execlog appends what is run beside the program
  layers               JSON list of absolute lower directories, topmost first; with `upper` and `work` the overlay
  user                 USER as in an image: name, uid, name:group, uid:gid; looked up in the root's own passwd and group
  groups               JSON list of further groups of the user, names or ids, beside those that USER brings
  volumes              JSON list of {"destination", "root"}: volumes whose copy-up may be pending; with "nocopy" it is
                       left pending, with "subpath" (a directory in it that is mounted, made where missing) too
  init                 "true": PID 1 is the reaper of shim.init
  cgroup               JSON {"v2": directory or null, "v1": [directories]}
  rlimits-requested    JSON list of the rlimits that somebody asked for by name; the others may be clamped
"""

import posixpath
import stat

from reconciler.linux import mount, namespace
from reconciler.shim.fields import (
    PREFIX,
    ConfigError,
    Section,
    annotation,
    checked_id,
    clean,
    json_sections,
    json_strings,
)
from reconciler.shim.options import Options, parse
from reconciler.shim.program import Process, prepare_process

_NAMESPACES = {
    "pid": namespace.CLONE_NEWPID,
    "network": namespace.CLONE_NEWNET,
    "mount": namespace.CLONE_NEWNS,
    "ipc": namespace.CLONE_NEWIPC,
    "uts": namespace.CLONE_NEWUTS,
    "cgroup": namespace.CLONE_NEWCGROUP,
    "user": namespace.CLONE_NEWUSER,
}
_JOINABLE = ("network", "ipc", "uts", "cgroup")
_ROOT_PROPAGATION = {
    "": mount.MS_SLAVE,
    "private": mount.MS_PRIVATE,
    "rprivate": mount.MS_PRIVATE,
    "slave": mount.MS_SLAVE,
    "rslave": mount.MS_SLAVE,
}
_DEVICE_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_DEFAULT_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
# Settings whose absence from this program must not go unnoticed, with what they would have done.
_REFUSED = {
    ("linux", "timeOffsets"): "time namespaces are not supported",
    ("linux", "mountLabel"): "SELinux is not supported",
    ("linux", "intelRdt"): "Intel RDT is not supported",
    ("process", "selinuxLabel"): "SELinux is not supported",
    ("process", "apparmorProfile"): "AppArmor is not supported",
    ("process", "scheduler"): "scheduler settings are not supported",
    ("process", "ioPriority"): "I/O priorities are not supported",
    ("process", "execCPUAffinity"): "CPU affinity for exec is not supported",
}


class Mount:
    """One entry of `mounts`: `destination` normalised and absolute, `kind` bind or a file system type."""

    __slots__ = ("destination", "kind", "mapped", "options", "source")

    def __init__(
        self, destination: str, kind: str, source: str, options: Options, mapped: bool = False
    ) -> None:
        self.destination = destination
        self.kind = kind
        self.source = source
        self.options = options
        self.mapped = mapped  # to the ids of the container's user namespace


class Prepared:
    """A container ready to be cloned. `clone_flags` are the namespaces that clone3 makes.

    Neither is the user namespace: see shim.users. `users` is its descriptor, -1 without one, once it has been made.

    The cgroup namespace is not among them: its root would be the cgroup of the cloning process, not of the child
    (kernel/cgroup/namespace.c takes that of `current`), so the child unshares it once it has been placed.
    """

    __slots__ = (
        "cgroup_v1",
        "cgroup_v2",
        "clone_flags",
        "devices",
        "domainname",
        "hostname",
        "init",
        "joins",
        "layers",
        "masked",
        "mounts",
        "name",
        "new_cgroup_namespace",
        "powerless",
        "process",
        "read_only",
        "readonly",
        "root_propagation",
        "rootfs",
        "sysctl",
        "upper",
        "users",
        "volumes",
        "work",
    )

    name: str
    rootfs: str
    read_only: bool
    layers: tuple[str, ...]
    upper: str
    work: str
    volumes: tuple[tuple[str, str, str, bool], ...]  # destination, volume, subpath or "", whether to copy up
    mounts: tuple[Mount, ...]
    devices: tuple[tuple[str, int, int, int, int, int], ...]  # path, mode with type, major, minor, uid, gid
    masked: tuple[str, ...]
    readonly: tuple[str, ...]
    sysctl: tuple[tuple[str, str], ...]
    hostname: str
    domainname: str
    clone_flags: int
    new_cgroup_namespace: bool
    joins: tuple[tuple[int, str], ...]  # CLONE_NEW* flag, path
    root_propagation: int
    powerless: bool  # device nodes in the root file system do nothing
    users: int
    cgroup_v2: str | None
    cgroup_v1: tuple[str, ...]
    init: bool
    process: Process


def prepare(config: dict[str, object], bundle: str = "/") -> Prepared:
    """Read `config`, whose relative paths mean the absolute directory `bundle`; raise ConfigError naming the field."""
    result = Prepared()
    annotations = Section(config, "annotations")
    root = Section(config, "root")
    linux = Section(config, "linux")
    for (section, key), reason in _REFUSED.items():
        if Section(config, section).raw(key) not in (None, "", [], {}):
            raise ConfigError(f"{section}.{key}: {reason}")
    if any(Section(config, "hooks").values.values()):
        raise ConfigError("hooks: not supported")
    result.name = annotations.text(PREFIX + "name")
    result.users = -1
    result.rootfs = _absolute(root.text("path") or "rootfs", bundle)
    result.read_only = root.flag("readonly")
    result.layers = tuple(json_strings(annotations, "layers"))
    result.upper = annotations.text(PREFIX + "upper")
    result.work = annotations.text(PREFIX + "work")
    if result.layers and not (result.upper and result.work):
        raise ConfigError(f"annotations: {PREFIX}layers needs {PREFIX}upper and {PREFIX}work")
    for path in (*result.layers, result.upper, result.work):
        if path and not path.startswith("/"):
            raise ConfigError(f"annotations: {path}: expected an absolute path")
    result.volumes = tuple(
        (
            clean(entry.text("destination")),
            entry.text("root"),
            entry.text("subpath"),
            not (entry.flag("nocopy") or entry.text("subpath")),
        )
        for entry in json_sections(annotations, "volumes")
    )
    result.init = annotations.text(PREFIX + "init") == "true"
    result.cgroup_v2, result.cgroup_v1 = _cgroup(annotations)
    mappings = linux.raw("uidMappings"), linux.raw("gidMappings")
    result.mounts = tuple(_mount(entry, bundle, mappings) for entry in Section(config, "").sections("mounts"))
    result.powerless = any(entry.destination == "/dev" for entry in result.mounts)
    _namespaces(result, linux)
    result.devices = tuple(_devices(linux))
    result.masked = tuple(clean(path) for path in linux.strings("maskedPaths"))
    result.readonly = tuple(clean(path) for path in linux.strings("readonlyPaths"))
    top = Section(config, "")
    result.hostname = top.text("hostname")
    result.domainname = top.text("domainname")
    if (result.hostname or result.domainname) and not result.clone_flags & namespace.CLONE_NEWUTS:
        raise ConfigError("hostname: needs a new uts namespace")
    result.sysctl = _sysctls(result, linux)
    propagation = linux.text("rootfsPropagation")
    if propagation not in _ROOT_PROPAGATION:
        raise ConfigError(f"linux.rootfsPropagation: {propagation}: not supported")
    result.root_propagation = _ROOT_PROPAGATION[propagation]
    personality = linux.section("personality").text("domain")
    if personality not in ("", "LINUX"):
        raise ConfigError(f"linux.personality: {personality}: not supported")
    result.process = prepare_process(config)
    if result.process.terminal and not any(m.kind == "devpts" for m in result.mounts):
        raise ConfigError("process.terminal: needs a devpts mount")
    return result


def _cgroup(annotations: Section) -> tuple[str | None, tuple[str, ...]]:
    section = Section({"cgroup": annotation(annotations, "cgroup")}, "cgroup", "annotations.cgroup")
    v2 = section.text("v2") if section.raw("v2") is not None else None
    return v2, tuple(section.strings("v1"))


def _absolute(path: str, bundle: str) -> str:
    if "\0" in path:
        raise ConfigError(f"{path!r}: a path can't hold a NUL")
    return path if path.startswith("/") else posixpath.normpath(f"{bundle}/{path}")


def _mount(entry: Section, bundle: str, mappings: tuple[object, object]) -> Mount:
    destination = entry.text("destination")
    if not destination:
        raise ConfigError(f"{entry.name}.destination: missing")
    try:
        options = parse(entry.strings("options"))
    except ValueError as cause:
        raise ConfigError(f"{entry.name}.options: {cause}") from cause
    own = entry.raw("uidMappings") or None, entry.raw("gidMappings") or None
    mapped = own != (None, None)
    kind = entry.text("type")
    if options.bind:
        kind = "bind"
    if mapped and (kind != "bind" or own != mappings):
        raise ConfigError(f"{entry.name}.uidMappings: only those of the container, for binds, are supported")
    if not kind or kind == "none":
        raise ConfigError(f"{entry.name}.type: missing")
    target = clean(destination)
    if target == "/":
        raise ConfigError(f"{entry.name}.destination: a mount on / would hide the root file system")
    source = entry.text("source")
    if kind == "bind":
        options.bind = True
        if not source:
            raise ConfigError(f"{entry.name}.source: missing")
        source = _absolute(source, bundle)
    return Mount(target, kind, source, options, mapped)


def _namespaces(result: Prepared, linux: Section) -> None:
    flags = 0
    joins: list[tuple[int, str]] = []
    for entry in linux.sections("namespaces"):
        kind, path = entry.text("type"), entry.text("path")
        if kind not in _NAMESPACES:
            raise ConfigError(f"{entry.name}.type: {kind} namespaces are not supported")
        flag = _NAMESPACES[kind]
        if flags & flag or any(flag == joined for joined, _ in joins):
            raise ConfigError(f"{entry.name}.type: {kind} is there twice")
        if not path:
            flags |= flag
        elif kind in _JOINABLE:
            joins.append((flag, _absolute(path, "/")))
        else:
            raise ConfigError(f"{entry.name}.path: joining a {kind} namespace is not supported")
    if not flags & namespace.CLONE_NEWNS:
        raise ConfigError("linux.namespaces: a new mount namespace is needed")
    if bool(flags & namespace.CLONE_NEWUSER) != bool(linux.raw("uidMappings")):
        raise ConfigError("linux.uidMappings: goes with a new user namespace, and that with it")
    result.new_cgroup_namespace = bool(flags & namespace.CLONE_NEWCGROUP)
    result.clone_flags = flags & ~(namespace.CLONE_NEWCGROUP | namespace.CLONE_NEWUSER)
    result.joins = tuple(joins)


def _devices(linux: Section) -> list[tuple[str, int, int, int, int, int]]:
    result = [
        (f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, 0, 0) for name, major, minor in _DEFAULT_DEVICES
    ]
    for entry in linux.sections("devices"):
        made = device(entry)
        if not made[0].startswith("/dev/"):
            raise ConfigError(f"{entry.name}.path: {made[0]}: expected a path in /dev")
        result = [other for other in result if other[0] != made[0]] + [made]
    return result


def device(entry: Section) -> tuple[str, int, int, int, int, int]:
    """Read one entry of `linux.devices`; raise ConfigError."""
    kind, path = entry.text("type"), clean(entry.text("path"))
    if kind not in _DEVICE_KINDS:
        raise ConfigError(f"{entry.name}.type: {kind}: expected c, u, b or p")
    mode = entry.number("fileMode") if entry.raw("fileMode") is not None else 0o666
    return (
        path,
        _DEVICE_KINDS[kind] | stat.S_IMODE(mode),
        entry.number("major"),
        entry.number("minor"),
        checked_id(entry.number("uid"), f"{entry.name}.uid"),
        checked_id(entry.number("gid"), f"{entry.name}.gid"),
    )


def _sysctls(result: Prepared, linux: Section) -> tuple[tuple[str, str], ...]:
    """Check that each sysctl belongs to a namespace of the container's own: the others would change the host."""
    own = result.clone_flags
    for flag, _ in result.joins:
        own |= flag
    pairs = []
    section = linux.section("sysctl")
    for name in sorted(section.values):
        path = name if "/" in name else name.replace(".", "/")
        ipc = path.startswith("fs/mqueue/") or path.startswith(("kernel/msg", "kernel/sem", "kernel/shm"))
        needed = (
            namespace.CLONE_NEWNET
            if path.startswith("net/")
            else namespace.CLONE_NEWIPC
            if ipc
            else namespace.CLONE_NEWUTS
            if path in ("kernel/hostname", "kernel/domainname")
            else 0
        )
        if ".." in path.split("/") or not needed:
            raise ConfigError(f"linux.sysctl.{name}: not in a namespace of the container")
        if not own & needed:
            raise ConfigError(
                f"linux.sysctl.{name}: needs a namespace of its own, or it would change the host"
            )
        pairs.append((path, section.text(name)))
    return tuple(pairs)
