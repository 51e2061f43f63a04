"""The values that make up a process: its arguments, environment, user and stop signal. Pure, as `spec.values` is."""

import re
import shlex
from typing import Annotated, Final

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault, Faults, not_yet
from reconciler.spec.marks import quote
from reconciler.spec.values import TEXTS, describe, each, text, written
from reconciler.spec.yaml12 import WrittenInt

_VARIABLE: Final = re.compile(r"[^=\s\x00-\x1f\x7f]+")
_USER: Final = re.compile(
    r"(?:[0-9]+|[A-Za-z_][-A-Za-z0-9_.]{0,31}\$?)(?::(?:[0-9]+|[A-Za-z_][-A-Za-z0-9_.]{0,31}\$?))?"
)
_HIGHEST_ID: Final = 2**31 - 1  # what does not fit an int32 was root to containerd once (CVE-2024-40635)

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


def environment(value: object) -> dict[str, str]:
    """Return variables by name, from a map or from a list of `K=V`."""
    found: dict[str, str] = {}
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


def _variable_value(value: object) -> str:
    if (
        isinstance(value, dict)
        and len(value) == 1
        and (kind := next(iter(value))) in ("secret", "config", "device")
    ):
        raise not_yet(f"{{{kind}: ...}} as a value")
    return written(value)


def user(value: object) -> str:
    """Return `uid[:gid]`, names allowed for both, or raise Fault."""
    found = value.text if isinstance(value, WrittenInt) else text(value)
    if _USER.fullmatch(found) is None:
        raise Fault(f"must be uid[:gid] or a user name, not {quote(found)}")
    for part in found.split(":"):
        if part.isdigit() and (len(part) > 10 or int(part) > _HIGHEST_ID):
            raise Fault(f"must not exceed {_HIGHEST_ID}, not {quote(part)}")
        if part.isdigit() and part != str(int(part)):
            raise Fault(f"must be written without leading zeros, not {quote(part)}")
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
Environment = Annotated[
    dict[str, str],
    PlainValidator(environment),
    WithJsonSchema({"anyOf": [TEXTS, {"type": "array", "items": {"type": "string", "pattern": "="}}]}),
]
User = Annotated[str | None, PlainValidator(user), WithJsonSchema({"type": ["string", "integer"]})]
StopSignal = Annotated[
    str | None, PlainValidator(stop_signal), WithJsonSchema({"type": "string", "pattern": "^(SIG)?[A-Z]"})
]
