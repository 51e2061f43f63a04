"""The values that make up a process: its arguments, environment, user, groups, limits and stop signal.

Pure, as `spec.values` is.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault, Faults, not_yet
from reconciler.spec.marks import quote
from reconciler.spec.values import TEXTS, config_name, describe, each, entries, text, written
from reconciler.spec.yaml12 import WrittenInt

_VARIABLE: Final = re.compile(r"[^=\s\x00-\x1f\x7f]+")
_USER: Final = re.compile(
    r"(?:[0-9]+|[A-Za-z_][-A-Za-z0-9_.]{0,31}\$?)(?::(?:[0-9]+|[A-Za-z_][-A-Za-z0-9_.]{0,31}\$?))?"
)
_GROUP: Final = re.compile(r"[0-9]+|[A-Za-z_][-A-Za-z0-9_.]{0,31}\$?")
_HIGHEST_ID: Final = 2**31 - 1  # what does not fit an int32 was root to containerd once (CVE-2024-40635)

# setrlimit(2), without `locks`, which Linux ignores since 2.4.25
ULIMITS: Final = frozenset(
    {
        "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
        "rttime", "sigpending", "stack",
    }
)  # fmt: skip
SIGNALS: Final = frozenset(
    {
        "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
        "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP",
        "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO",
        "SIGPWR", "SIGSYS", "SIGRTMIN", "SIGRTMAX",
    }
)  # fmt: skip
_REALTIME: Final = re.compile(r"SIGRT(MIN\+([1-9]|[12][0-9]|30)|MAX-([1-9]|[12][0-9]|30))", re.ASCII)


def arguments(value: object) -> tuple[str, ...]:
    """Return a list of strings; a string is split as a shell would, without one."""
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise Fault(f"must have closed quotes: {quote(value)}") from error
    if not isinstance(value, tuple | list):
        hint = "leave it out for the image's own, or write []" if value is None else ""
        raise Fault(f"must be a list or a string, not {describe(value)}", hint=hint)
    return tuple(each(value, text))


@dataclass(frozen=True, slots=True)
class FromConfig:
    """A value that is the content of a config of the app."""

    config: str


@dataclass(frozen=True, slots=True)
class FromDevice:
    """A value that is a label of the device."""

    label: str


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of each process, -1 for none."""

    soft: int
    hard: int


DEFAULT_NOFILE: Final = Ulimit(65536, 1048576)


def environment(value: object) -> dict[str, str | FromConfig | FromDevice]:
    """Return variables by name, from a map or from a list of `K=V`."""
    found: dict[str, str | FromConfig | FromDevice] = {}
    faults: list[Fault] = []
    if isinstance(value, dict):
        for key, item in value.items():
            try:
                found[_variable(key)] = _variable_value(item)
            except Fault as fault:
                fault.path = (key,)
                faults.append(fault)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            try:
                key, equals, rest = text(item).partition("=")
                if not equals:
                    raise Fault(
                        f"must be K=V, not {quote(key)}: there is no interpolation of the host's environment"
                    )
                if _variable(key) in found:
                    raise Fault(f"sets {quote(key)} a second time")
                found[key] = rest
            except Fault as fault:
                fault.path = (index,)
                faults.append(fault)
    else:
        raise Fault(f"must be a map or a list of K=V, not {describe(value)}")
    if faults:
        raise Faults(faults)
    return found


def _variable(key: object) -> str:
    if not isinstance(key, str) or _VARIABLE.fullmatch(key) is None:
        raise Fault(
            f"the variable {quote(str(key))} must not be empty or contain '=' or blanks",
            subject=False,
            at_key=True,
        )
    return key


def _variable_value(value: object) -> str | FromConfig | FromDevice:
    if not isinstance(value, dict):
        return written(value)
    match list(value.items()):
        case [("secret", _)]:
            raise not_yet("{secret: ...} as a value")
        case [("config", name)]:
            return FromConfig(_within("config", config_name, name))
        case [("device", name)]:
            return FromDevice(_within("device", _device_label, name))
        case _:
            raise Fault(
                "must be a string, {config: NAME} or {device: labels.KEY}",
                hint="the value of a variable is text; quote it" if value else "",
            )


def _within(key: str, check: Callable[[object], str], value: object) -> str:
    try:
        return check(value)
    except Fault as fault:
        fault.path = (key, *fault.path)
        raise


def _device_label(value: object) -> str:
    found = text(value)
    prefix, _, label = found.partition(".")
    if prefix != "labels" or not label:
        raise Fault(f"must be labels.KEY, not {quote(found)}")
    return label


def env_from(value: object) -> tuple[str, ...]:
    """Return the names of configs, in order."""
    if not isinstance(value, tuple | list):
        hint = "write [{config: NAME}]" if isinstance(value, str | dict) else ""
        raise Fault(f"must be a list, not {describe(value)}", hint=hint)
    return tuple(each(value, _env_source))


def _env_source(value: object) -> str:
    if isinstance(value, dict):
        match list(value.items()):
            case [("secret", _)]:
                raise not_yet("{secret: ...} in env_from")
            case [("config", name)]:
                return _within("config", config_name, name)
    hint = f"write {{config: {value}}}" if isinstance(value, str) and len(value) < 64 else ""
    raise Fault("must be {config: NAME}", hint=hint)


def groups(value: object) -> tuple[str, ...]:
    """Return ids and names of groups, each once, sorted: their order means nothing."""
    if not isinstance(value, tuple | list):
        raise Fault(f"must be a list, not {describe(value)}")
    return tuple(sorted(set(each(value, _group))))


def _group(value: object) -> str:
    found = value.text if isinstance(value, WrittenInt) else text(value)
    if _GROUP.fullmatch(found) is None:
        raise Fault(f"must be the id or the name of a group, not {quote(found)}")
    return _checked_id(found)


def _checked_id(part: str) -> str:
    if part.isdigit() and (len(part) > 10 or int(part) > _HIGHEST_ID):
        raise Fault(f"must not exceed {_HIGHEST_ID}, not {quote(part)}")
    if part.isdigit() and part != str(int(part)):
        raise Fault(f"must be written without leading zeros, not {quote(part)}")
    return part


def ulimits(value: object) -> dict[str, Ulimit]:
    """Return limits by their name in lower case; what is the default anyway is left out."""

    def named(key: object, item: object) -> tuple[str, Ulimit] | None:
        name = str(key).lower().removeprefix("rlimit_")
        if name not in ULIMITS:
            raise Fault(
                f"{quote(str(key))} is no limit of a process",
                subject=False,
                at_key=True,
                hint=f"known are {', '.join(sorted(ULIMITS))}",
            )
        limit = _ulimit(item)
        return None if (name, limit) == ("nofile", DEFAULT_NOFILE) else (name, limit)

    return entries(value, named)


def _ulimit(value: object) -> Ulimit:
    if not isinstance(value, dict):
        both = _amount(value)
        return Ulimit(both, both)
    if set(value) != {"soft", "hard"}:
        raise Fault("must be a number or {soft: N, hard: N}")
    limit = Ulimit(*(_amount(value[key], key) for key in ("soft", "hard")))
    if limit.hard >= 0 and not 0 <= limit.soft <= limit.hard:
        raise Fault(f"must be at most hard ({limit.hard}), not {limit.soft}", path=("soft",))
    return limit


def _amount(value: object, *path: str) -> int:
    if value == "unlimited":
        return -1
    if not isinstance(value, WrittenInt) or value.text != str(int(value)):
        raise Fault(f"must be a whole number or -1 for no limit, not {describe(value)}", path=path)
    if not -1 <= value < 2**63:
        raise Fault(f"must be from -1 to 2^63 - 1, not {value.text[:40]}", path=path)
    return int(value)


def user(value: object) -> str:
    """Return `uid[:gid]`, names allowed for both, or raise Fault."""
    found = value.text if isinstance(value, WrittenInt) else text(value)
    if _USER.fullmatch(found) is None:
        raise Fault(f"must be uid[:gid] or a user name, not {quote(found)}")
    for part in found.split(":"):
        _checked_id(part)
    return found


def stop_signal(value: object) -> str:
    """Return the full name of a signal, or raise Fault."""
    if isinstance(value, WrittenInt):
        raise Fault(f"must be the name of a signal, not {describe(value)}", hint="for example SIGTERM")
    found = text(value)
    full = found if found.startswith("SIG") else f"SIG{found}"
    if full not in SIGNALS and _REALTIME.fullmatch(full) is None:
        hint = f"write {full.upper()}" if full.upper() in SIGNALS else "for example SIGTERM"
        raise Fault(f"must be the name of a signal, not {quote(found)}", hint=hint)
    return full


_ARGUMENTS: Final = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}

Arguments = Annotated[tuple[str, ...] | None, PlainValidator(arguments), WithJsonSchema(_ARGUMENTS)]
_REFERENCES: Final[list[dict[str, Any]]] = [
    {
        "type": "object",
        "properties": {kind: {"type": "string"}},
        "required": [kind],
        "additionalProperties": False,
    }
    for kind in ("config", "device")
]
_VALUES: Final = {
    "type": "object",
    "additionalProperties": {"anyOf": [TEXTS["additionalProperties"], *_REFERENCES]},
}
_LIMIT: Final[dict[str, Any]] = {"anyOf": [{"type": "integer", "minimum": -1}, {"const": "unlimited"}]}
Environment = Annotated[
    dict[str, str | FromConfig | FromDevice],
    PlainValidator(environment),
    WithJsonSchema({"anyOf": [_VALUES, {"type": "array", "items": {"type": "string", "pattern": "="}}]}),
]
EnvFrom = Annotated[
    tuple[str, ...], PlainValidator(env_from), WithJsonSchema({"type": "array", "items": _REFERENCES[0]})
]
Groups = Annotated[
    tuple[str, ...],
    PlainValidator(groups),
    WithJsonSchema({"type": "array", "items": {"type": ["string", "integer"]}}),
]
Ulimits = Annotated[
    dict[str, Ulimit],
    PlainValidator(ulimits),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    *_LIMIT["anyOf"],
                    {
                        "type": "object",
                        "properties": {"soft": _LIMIT, "hard": _LIMIT},
                        "required": ["soft", "hard"],
                        "additionalProperties": False,
                    },
                ]
            },
        }
    ),
]
User = Annotated[str | None, PlainValidator(user), WithJsonSchema({"type": ["string", "integer"]})]
StopSignal = Annotated[
    str | None, PlainValidator(stop_signal), WithJsonSchema({"type": "string", "pattern": "^(SIG)?[A-Z]"})
]
