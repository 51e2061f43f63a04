"""The network of one container: its mode, the servers that it asks for names, names that it knows itself, port ranges.

Pure.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault, Faults
from reconciler.spec.marks import quote
from reconciler.spec.modes import JOINS
from reconciler.spec.values import NAME_PATTERN, TEXTS, describe, each, hostname, text, whole

HOST_GATEWAY: Final = "host-gateway"
# By hand also one of another app, or of an ad-hoc one its id; `spec.joining` says which of them a spec may name.
_JOINED: Final = re.compile(rf"{NAME_PATTERN}(?:/{NAME_PATTERN}(?:\.[1-9][0-9]?)?)?", re.ASCII)
_MOST_SERVERS: Final = 3  # MAXNS, resolv.h: the C library asks no more
_OPTION: Final = re.compile(r"[a-z][a-z0-9-]*(?::[0-9]{1,3})?", re.ASCII)
_SPAN: Final = re.compile(r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?", re.ASCII)
_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Span:
    """The ports `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def port_span(value: object) -> Span:
    """Return a port, or a range of ports `FIRST-LAST`."""
    if isinstance(value, Span):
        return value
    written = str(whole(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(written, str):
        raise Fault(f"must be a port or a range of ports, not {describe(value)}")
    match = _SPAN.fullmatch(written)
    if match is None:
        raise Fault(f"must be a port or a range such as 8000-8010, not {describe(value)}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last > _LAST_PORT:
        raise Fault(f"must be at most {_LAST_PORT}, not {last}")
    if last < first:
        raise Fault(f"{quote(written)} ends before it begins", subject=False)
    return Span(first, last)


def mode(value: object) -> str:
    """Return bridge, host, none, or container:NAME."""
    found = text(value)
    kind, colon, name = found.partition(":")
    if f"{kind}{colon}" == JOINS and _JOINED.fullmatch(name) is not None:
        return found
    if found not in ("bridge", "host", "none"):
        hint = f"write {JOINS}{name}" if kind == "service" and _JOINED.fullmatch(name) is not None else ""
        raise Fault(f"must be bridge, host, none or container:NAME, not {quote(found)}", hint=hint)
    return found


def server(value: object) -> str:
    """Return the address of a name server."""
    found = text(value)
    try:
        return str(ipaddress.ip_address(found))
    except ValueError as error:
        raise Fault(f"must be an IP address, not {quote(found)}") from error


def _items(value: object) -> tuple[object, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, tuple | list):
        return tuple(value)
    raise Fault(f"must be a list, not {describe(value)}")


def servers(value: object) -> tuple[str, ...]:
    """Return the servers, at most three; one may stand for a list."""
    found = tuple(each(_items(value), server))
    if len(found) > _MOST_SERVERS:
        raise Fault(f"must be at most {_MOST_SERVERS} addresses: programs ask no more")
    return found


def domain(value: object) -> str:
    """Return a domain in which names are looked up; `.` stands for none."""
    found = text(value)
    return found if found == "." else hostname(found.removesuffix("."))


def domains(value: object) -> tuple[str, ...]:
    """Return the domains in which names are looked up; one may stand for a list."""
    found = tuple(each(_items(value), domain))
    if "." in found and len(found) > 1:
        raise Fault("must be '.' alone, for no domain, or names")
    return found


def option(value: object) -> str:
    """Return an option of resolv.conf(5), such as `ndots:2`."""
    found = text(value)
    if _OPTION.fullmatch(found) is None:
        raise Fault(f"must be an option of resolv.conf(5), such as ndots:2, not {quote(found)}")
    return found


def options(value: object) -> tuple[str, ...]:
    """Return the options; one may stand for a list."""
    return tuple(each(_items(value), option))


def extra_hosts(value: object) -> tuple[tuple[str, str], ...]:
    """Return (name, address) pairs, sorted, from a map or from a list of `NAME:ADDRESS` or `NAME=ADDRESS`."""
    if isinstance(value, dict):
        pairs = [(str(key), item, key) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        pairs = [(*_pair(item), index) for index, item in enumerate(value)]
    else:
        raise Fault(f"must be a map or a list of NAME:ADDRESS, not {describe(value)}")
    names: set[tuple[str, str]] = set()
    faults: list[Fault] = []
    for name, address, where in pairs:
        try:
            if address is None:
                raise Fault(f"must be NAME:ADDRESS, not {quote(name)}")
            names.add((hostname(name), _host(address)))
        except Fault as fault:
            fault.path = (where,)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return tuple(sorted(names))


def _pair(value: object) -> tuple[str, object]:
    """Split `NAME:ADDRESS` or `NAME=ADDRESS`; without an address there is None."""
    if not isinstance(value, str):
        return describe(value), None
    name, separator, address = value.partition("=" if "=" in value else ":")
    return name, address if separator else None


def _host(value: object) -> str:
    found = text(value)
    if found == HOST_GATEWAY:
        return found
    try:
        return str(ipaddress.ip_address(found.removeprefix("[").removesuffix("]")))
    except ValueError as error:
        raise Fault(f"must be an IP address or {HOST_GATEWAY}, not {quote(found)}") from error


_LIST: Final = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
PortSpan = Annotated[
    Span,
    PlainValidator(port_span),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": _LAST_PORT},
                {"type": "string", "pattern": r"^\d+(-\d+)?$"},
            ]
        }
    ),
]
NetworkMode = Annotated[
    str,
    PlainValidator(mode),
    WithJsonSchema({"type": "string", "pattern": rf"^(bridge|host|none|{JOINS}{NAME_PATTERN})$"}),
]
Servers = Annotated[tuple[str, ...], PlainValidator(servers), WithJsonSchema(_LIST)]
Domains = Annotated[tuple[str, ...], PlainValidator(domains), WithJsonSchema(_LIST)]
ResolverOptions = Annotated[tuple[str, ...], PlainValidator(options), WithJsonSchema(_LIST)]
ExtraHosts = Annotated[
    tuple[tuple[str, str], ...],
    PlainValidator(extra_hosts),
    WithJsonSchema({"anyOf": [TEXTS, {"type": "array", "items": {"type": "string"}}]}),
]
