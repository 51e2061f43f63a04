"""The process section of a config.json: the program, its user, its privileges and limits.

Pure. The same reading serves the container's own program and every program that `exec` adds, so that the second can't
get more than the first by an omission here.
"""

import resource

from reconciler.linux import capability
from reconciler.shim.fields import PREFIX, ConfigError, Section, checked_id, clean, encode, json_strings


class Process:
    """What a process in the container runs as: the container's own program, or one that `exec` adds."""

    __slots__ = (
        "additional_gids",
        "ambient",
        "arguments",
        "bounding",
        "console_size",
        "cwd",
        "effective",
        "environment",
        "filter",
        "filtered",
        "gid",
        "groups",
        "ids",
        "inheritable",
        "no_new_privileges",
        "oom_score_adj",
        "permitted",
        "rlimits",
        "rlimits_requested",
        "supervisor",
        "terminal",
        "uid",
        "umask",
        "user",
    )

    arguments: list[bytes]
    environment: dict[bytes, bytes]
    cwd: str
    terminal: bool
    console_size: tuple[int, int] | None  # rows, columns
    user: str | None  # where set, beats the ids
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    groups: tuple[str, ...]  # names or ids, beside those that `user` brings
    ids: tuple[int, int] | None  # its user namespace: the device's id that 0 is in it, and how many
    umask: int
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    no_new_privileges: bool
    oom_score_adj: int | None
    rlimits: tuple[tuple[str, int, int], ...]  # name, soft, hard; -1 is unlimited
    rlimits_requested: frozenset[str] | None  # None: all of them
    filtered: bool  # it must not run without a filter, which whoever reads the bundle puts into `filter`
    filter: tuple[bytes, int] | None  # see shim.filter
    supervisor: (
        tuple[int, bytes] | None
    )  # a socket that takes the listener of the filter, and what is sent with it


def prepare_process(config: dict[str, object]) -> Process:
    """Read `process`, the annotations about it, and whether it is filtered; raise ConfigError naming the field.

    For `exec`, give a config whose `process` is that of the new program, and whose `linux` is the container's.
    """
    annotations = Section(config, "annotations")
    process = Section(config, "process")
    user = process.section("user")
    result = Process()
    arguments = process.strings("args")
    if not arguments or not arguments[0]:
        raise ConfigError("process.args: expected a program")
    result.arguments = [encode(value, "process.args") for value in arguments]
    result.environment = {}
    for entry in process.strings("env"):
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise ConfigError(f"process.env: {entry}: expected NAME=value")
        result.environment[encode(name, "process.env")] = encode(value, "process.env")
    cwd = process.text("cwd") or "/"
    if not cwd.startswith("/"):
        raise ConfigError(f"process.cwd: {cwd!r}: expected an absolute path")
    result.cwd = clean(cwd)
    result.terminal = process.flag("terminal")
    size = process.section("consoleSize")
    result.console_size = (size.number("height"), size.number("width")) if size.values else None
    asked = annotations.raw(PREFIX + "user")
    result.user = annotations.text(PREFIX + "user") if asked is not None else None
    result.uid = checked_id(user.number("uid"), "process.user.uid")
    result.gid = checked_id(user.number("gid"), "process.user.gid")
    result.additional_gids = tuple(
        checked_id(value, "process.user.additionalGids") for value in user.numbers("additionalGids")
    )
    result.groups = tuple(json_strings(annotations, "groups")) if asked is not None else ()
    result.umask = user.number("umask") if user.raw("umask") is not None else 0o022
    capabilities = process.section("capabilities")
    result.bounding = _capabilities(capabilities, "bounding")
    result.effective = _capabilities(capabilities, "effective")
    result.permitted = _capabilities(capabilities, "permitted")
    result.inheritable = _capabilities(capabilities, "inheritable")
    result.ambient = _capabilities(capabilities, "ambient")
    result.no_new_privileges = process.flag("noNewPrivileges")
    adjust = process.raw("oomScoreAdj")
    result.oom_score_adj = process.number("oomScoreAdj") if adjust is not None else None
    result.rlimits = tuple(_rlimit(entry) for entry in process.sections("rlimits"))
    ours = annotations.raw(PREFIX + "name") is not None
    # Of its own bundles: others join a user namespace their own way (shim.oci_create)
    result.ids = _ids(Section(config, "linux")) if ours else None
    result.rlimits_requested = frozenset(json_strings(annotations, "rlimits-requested")) if ours else None
    linux = Section(config, "linux")
    linux.section("seccomp")  # an object, if anything
    result.filtered = linux.raw("seccomp") is not None
    result.filter = None
    result.supervisor = None
    return result


def _ids(linux: Section) -> tuple[int, int] | None:
    """Read the range of a user namespace, the same for users and groups and from 0 on; raise ConfigError."""
    both = []
    for key in ("uidMappings", "gidMappings"):
        entries = linux.sections(key)
        if not entries:
            continue
        (entry, *more) = entries
        first, count = entry.number("hostID"), entry.number("size")
        if more or entry.number("containerID") != 0 or count < 1:
            raise ConfigError(f"linux.{key}: expected one range, from 0 on")
        checked_id(first, f"{entry.name}.hostID")
        checked_id(first + count - 1, f"{entry.name}.size")
        both.append((first, count))
    if not both:
        return None
    if len(both) != 2 or both[0] != both[1]:
        raise ConfigError("linux.gidMappings: expected the range of linux.uidMappings")
    return both[0]


def _rlimit(entry: Section) -> tuple[str, int, int]:
    name = entry.text("type")
    if not name.startswith("RLIMIT_") or not hasattr(resource, name):
        raise ConfigError(f"{entry.name}.type: {name}: no such limit")
    soft, hard = entry.number("soft"), entry.number("hard")
    top = 2**64 - 1
    if not (0 <= soft <= top and 0 <= hard <= top):
        raise ConfigError(f"{entry.name}: {name}: out of range")
    if soft > hard:
        raise ConfigError(f"{entry.name}: {name}: soft limit {soft} above hard limit {hard}")
    return name, -1 if soft == top else soft, -1 if hard == top else hard


def _capabilities(section: Section, key: str) -> int:
    names = section.strings(key)
    for name in names:
        if name not in capability.NUMBERS:
            raise ConfigError(f"{section.name}.{key}: {name}: no such capability")
    return capability.mask(names)
