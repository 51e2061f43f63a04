"""Seccomp profiles in Docker's form, read strictly, brought into one form, and resolved for a container. Pure.

The form is that of OCI's `linux.seccomp`, and beside it which of several architectures the device's own brings
(`archMap`), and rules that are there only with or without a capability, an architecture or a kernel (`includes`,
`excludes`). Files made for Docker and podman are understood.
"""

import errno
import json
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, Final, NoReturn

from reconciler.linux.seccomp.compile import compile, flags, notifies, unknown
from reconciler.linux.seccomp.load import FLAG_WAIT_KILLABLE_RECV
from reconciler.spec.fault import Fault
from reconciler.spec.kernel import CAPABILITIES

# By machine: Go's name of the architecture, which `arches` has, and libseccomp's, which everything else has.
_MACHINES: Final = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}
_TOP: Final = frozenset(
    {
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "architectures",
        "archMap",
        "flags",
        "syscalls",
        "comment",
        "listenerPath",
        "listenerMetadata",
    }
)
_RULE: Final = frozenset(
    {"name", "names", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"}
)
_ARGUMENT: Final = frozenset({"index", "value", "valueTwo", "op"})
_WHEN: Final = frozenset({"caps", "arches", "minKernel"})
_ARCHITECTURE: Final = frozenset({"architecture", "subArchitectures"})
_KERNEL: Final = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.\d{1,6})?", re.ASCII)

Kernel = tuple[int, int]


@lru_cache(maxsize=64)
def normal(data: bytes) -> bytes:
    """Return the profile in `data` in its one form, without comments; raise Fault with what is wrong in it.

    The same for files that differ in blanks, order of keys or comments only: it is what a container is identified by.
    """
    document = _parse(data)
    for path, entry, keys in _objects(document):
        if unlike := sorted(entry.keys() - keys):
            _fail(f"{path}{unlike[0]}: no such key; known are {', '.join(sorted(keys))}")
    for index, entry in enumerate(_list(document, "syscalls")):
        _check_rule(f"syscalls[{index}]", entry)
    if _list(document, "archMap") and _list(document, "architectures"):
        _fail("archMap: not beside architectures")
    section = _section(document, _rules(document))
    try:
        if flags(section) & FLAG_WAIT_KILLABLE_RECV:
            _fail(
                "flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: there is no supervisor that it would be for"
            )
        asked = document.get("listenerPath") or notifies(section)
        if asked or section.get("defaultAction") == "SCMP_ACT_NOTIFY":
            _fail("SCMP_ACT_NOTIFY: there is no supervisor that calls could be handed over to")
        for machine in _MACHINES:
            compile(section, machine)
    except ValueError as error:
        if isinstance(error, Fault):
            raise
        _fail(str(error))
    bare = {key: value for key, value in document.items() if key != "comment"}
    bare["syscalls"] = [
        {key: value for key, value in rule.items() if key != "comment"}
        for rule in _list(document, "syscalls")
    ]
    return json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()


def misspelt(data: bytes) -> list[str]:
    """Return names of calls that a profile in its one form means to refuse, and that nobody here knows."""
    document = json.loads(data)
    rules = [rule for rule in _rules(document) if rule["action"] != "SCMP_ACT_ALLOW"]
    return unknown({"syscalls": rules})


def resolve(data: bytes, capabilities: Collection[str], machine: str, kernel: Kernel) -> dict[str, Any]:
    """Return what a profile in its one form comes to, as OCI's `linux.seccomp`.

    `capabilities` (full names) are those of the container's root, `kernel` is its version.
    """
    document = json.loads(data)
    arch, native = _MACHINES[machine]
    rules = [
        _rule(rule)
        for rule in _list(document, "syscalls")
        if _included(rule.get("includes") or {}, capabilities, arch, kernel)
        and not _excluded(rule.get("excludes") or {}, capabilities, arch, kernel)
    ]
    section = _section(document, rules)
    for entry in _list(document, "archMap"):
        if entry.get("architecture") == native:
            section["architectures"] = [native, *(entry.get("subArchitectures") or ())]
    return section


def _included(when: dict[str, Any], capabilities: Collection[str], arch: str, kernel: Kernel) -> bool:
    arches, least = when.get("arches") or (), when.get("minKernel")
    return (
        all(name in capabilities for name in when.get("caps") or ())
        and (not arches or arch in arches)
        and (not least or kernel >= _version(least))
    )


def _excluded(when: dict[str, Any], capabilities: Collection[str], arch: str, kernel: Kernel) -> bool:
    least = when.get("minKernel")
    return (
        any(name in capabilities for name in when.get("caps") or ())
        or arch in (when.get("arches") or ())
        or bool(least and kernel >= _version(least))
    )


def _version(written: str) -> Kernel:
    match = _KERNEL.fullmatch(written)
    assert match is not None, written
    return int(match[1]), int(match[2])


def _section(document: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    section = {"defaultAction": document.get("defaultAction"), "syscalls": rules}
    number = _errno(document, "defaultErrnoRet", "defaultErrno")
    if number is not None:
        section["defaultErrnoRet"] = number
    for key in ("architectures", "flags"):
        if document.get(key):
            section[key] = document[key]
    return section


def _rules(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [_rule(rule) for rule in _list(document, "syscalls")]


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"names": rule.get("names") or [rule.get("name")], "action": rule.get("action")}
    number = _errno(rule, "errnoRet", "errno")
    if number is not None:
        found["errnoRet"] = number
    if rule.get("args"):
        found["args"] = rule["args"]
    return found


def _errno(entry: dict[str, Any], number: str, name: str) -> Any:
    """The number, or podman's name of it."""
    if entry.get(number) is None and entry.get(name):
        return getattr(errno, str(entry[name]), entry[name])
    return entry.get(number)


# --- reading ----------------------------------------------------------------------------------------------------------


def _fail(message: str) -> NoReturn:
    raise Fault(message, subject=False)


def _parse(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            _fail(f"{next(name for name in names if names.count(name) > 1)} is there twice in one object")
        return found

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError:
        _fail("not UTF-8")
    except Fault:
        raise
    except (ValueError, RecursionError) as error:
        _fail(f"not JSON: {error}")
    if not isinstance(document, dict):
        _fail("not a JSON object")
    return document


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        _fail(f"{key}: expected a list")
    return value


def _objects(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], frozenset[str]]]:
    """Yield every object of a profile with its place and the keys that it may have."""
    yield "", document, _TOP
    for key, keys in (("archMap", _ARCHITECTURE), ("syscalls", _RULE)):
        for index, entry in enumerate(_list(document, key)):
            where = f"{key}[{index}]"
            yield _object(where, entry, keys)
            if key == "archMap" and not isinstance(entry.get("subArchitectures") or [], list):
                _fail(f"{where}.subArchitectures: expected a list")
            for inner in ("includes", "excludes"):
                if key == "syscalls" and entry.get(inner) is not None:
                    yield _object(f"{where}.{inner}", entry[inner], _WHEN)
            for number, argument in enumerate(_list(entry, "args")):
                yield _object(f"{where}.args[{number}]", argument, _ARGUMENT)


def _object(where: str, entry: object, keys: frozenset[str]) -> tuple[str, dict[str, Any], frozenset[str]]:
    if not isinstance(entry, dict):
        _fail(f"{where}: expected an object")
    return f"{where}.", entry, keys


def _check_rule(where: str, rule: dict[str, Any]) -> None:
    if (rule.get("name") is None) == (rule.get("names") is None):
        _fail(f"{where}: expected exactly one of name and names")
    for key in ("includes", "excludes"):
        when = rule.get(key) or {}
        for name in ("caps", "arches"):
            values = when.get(name)
            if values is not None and not (
                isinstance(values, list) and all(isinstance(value, str) for value in values)
            ):
                _fail(f"{where}.{key}.{name}: expected a list of strings")
        for name in when.get("caps") or ():
            if name not in CAPABILITIES:
                _fail(f"{where}.{key}.caps: {name}: no such capability, for example CAP_SYS_ADMIN")
        least = when.get("minKernel")
        if least is not None and (not isinstance(least, str) or (least and _KERNEL.fullmatch(least) is None)):
            _fail(f"{where}.{key}.minKernel: expected a version such as 4.8")
