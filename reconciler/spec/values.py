"""The scalar types of the format: names, paths, sizes, texts. Each validator raises `Fault` with what was expected.

A validator sees what `spec.yaml12.plain` yields, before pydantic would convert or refuse it. Numbers of a file are
always of the types that remember how they were written; a bare int or float comes from code and is in its final unit
already. Pure.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from reconciler.spec.adhoc import ADHOC
from reconciler.spec.fault import Fault, Faults
from reconciler.spec.marks import quote
from reconciler.spec.quantity import parse_bytes, parse_cpus, parse_duration, parse_percent
from reconciler.spec.reference import InvalidReferenceError, Reference
from reconciler.spec.yaml12 import WrittenFloat, WrittenInt

NAME_PATTERN: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
_CONFIG_NAME: Final = re.compile(r"[a-z0-9](?:[-_a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[-_./A-Za-z0-9]{0,251}[A-Za-z0-9])?", re.ASCII)
_HOSTNAME: Final = re.compile(
    r"[A-Za-z0-9](?:[-A-Za-z0-9]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*",
    re.ASCII,
)
_MODE: Final = re.compile(r"0?[0-7]{3}", re.ASCII)
_STICKY_MODE: Final = re.compile(r"[01]?[0-7]{3}", re.ASCII)
_LONGEST_PATH: Final = 4095
_K = TypeVar("_K")
_V = TypeVar("_V")


def describe(value: object) -> str:
    """Return what a value is, for `must be a string, not ...`."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case WrittenInt() | WrittenFloat():
            return f"the number {value.text if len(value.text) <= 40 else value.text[:40] + '...'}"
        case int() | float():
            return f"the number {value}"
        case str():
            return quote(value)
        case tuple() | list():
            return "a list"
        case dict():
            return "a map"
        case _:
            return "this"


def text(value: object) -> str:
    """Return `value` if it is a string, or raise Fault; a number or a boolean gets the advice to quote it."""
    if isinstance(value, str):
        return value
    raise Fault(f"must be a string, not {describe(value)}", hint=quoted(value))


def quoted(value: object) -> str:
    if isinstance(value, bool):
        return f'write "{describe(value)}"'
    if isinstance(value, WrittenInt | WrittenFloat) and len(value.text) < 40:
        return f'write "{value.text}"'
    return ""


def written(value: object) -> str:
    """Return a string, or a number as it was written (0755 stays "0755"), or raise Fault."""
    if isinstance(value, WrittenInt | WrittenFloat):
        return value.text
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise Fault("must not be null", hint='write "" for an empty value')
    if isinstance(value, bool):
        raise Fault(f"must be quoted, as {describe(value)} is not a string", hint=quoted(value))
    return text(value)


def whole(value: object) -> object:
    """Refuse a whole number that reads differently in other YAML versions: 0755 and +5."""
    if isinstance(value, WrittenInt) and value.text != str(int(value)):
        raise Fault(
            f"must be written without leading zeros or plus sign, not {value.text}",
            hint=f"write {int(value)}",
        )
    return value


Whole = Annotated[int, BeforeValidator(whole)]


def name(value: object) -> str:
    """Return a name (RFC 1123 label) or raise Fault."""
    return _named(value, _NAME, "lower-case letters, digits and '-', at most 63")


def config_name(value: object) -> str:
    """Return the name of a config, which may hold '_' too."""
    return _named(value, _CONFIG_NAME, "lower-case letters, digits, '-' and '_', at most 63")


def _named(value: object, pattern: re.Pattern[str], what: str) -> str:
    found = text(value)
    if pattern.fullmatch(found) is None:
        raise Fault(f"must be {what} characters, not {quote(found)}", hint=_name_hint(found, pattern))
    return found


def _name_hint(found: str, pattern: re.Pattern[str]) -> str:
    guess = re.sub(r"[^a-z0-9]+", "-", found.lower()).strip("-")[:63].rstrip("-")
    return f"for example {guess}" if pattern.fullmatch(guess) and len(found) < 100 else ""


def app_name(value: object) -> str:
    """Return the name of an app: at most 40 characters, so that names derived from it fit the kernel's limits."""
    found = name(value)
    if len(found) > 40:
        raise Fault(f"must be at most 40 characters long, not {len(found)}")
    if found == ADHOC:
        raise Fault(f"must not be '{ADHOC}': containers that are run by hand are called so")
    return found


def path(value: object) -> str:
    """Return an absolute POSIX path, normalised, or raise Fault."""
    found = text(value)
    if not found.startswith("/"):
        raise Fault(
            f"must be an absolute path, not {quote(found)}",
            hint=f"for example /{found}" if found[:1].isalnum() else "",
        )
    parts = [part for part in found.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Fault(f"must not contain '..': {quote(found)}")
    if len(found.encode()) > _LONGEST_PATH:
        raise Fault(f"must be at most {_LONGEST_PATH} bytes long")
    if not found.isprintable():
        raise Fault(f"must not contain control characters: {quote(found)}")
    return "/" + "/".join(parts)


def target(value: object) -> str:
    """Return a path inside the container on which something may be mounted."""
    found = path(value)
    if found == "/":
        raise Fault("must not be the root directory")
    if found == "/proc" or found.startswith(
        "/proc/"
    ):  # a mount there can fake what the engine reads (CVE-2019-19921)
        raise Fault(f"must not be in /proc: {quote(found)}")
    return found


def repository_path(value: object) -> str:
    """Return a path relative to the root of the repository, or raise Fault."""
    found = text(value)
    parts = found.split("/")
    if not found or any(part in ("", ".", "..") for part in parts):
        raise Fault(
            f"must be a path from the root of the repository, without '..', '.' and a leading '/', not {quote(found)}"
        )
    if not found.isprintable() or len(found.encode()) > _LONGEST_PATH:
        raise Fault("must be a printable path of at most 4095 bytes")
    return found


def image(value: object) -> Reference:
    """Return an image reference that is pinned by digest, or raise Fault."""
    if isinstance(value, Reference):
        return value
    found = text(value)
    try:
        reference = Reference.parse(found)
    except InvalidReferenceError as error:
        raise Fault(str(error), hint=error.hint, subject=False) from error
    if reference.digest is None:
        raise Fault("must be pinned by digest", hint=f"run: reconciler digest {found}")
    return reference


def each(values: tuple[Any, ...] | list[Any], check: Any) -> list[Any]:
    """Return `check` of every item, or raise Faults with the index of each that is wrong."""
    results, faults = [], []
    for index, item in enumerate(values):
        try:
            results.append(check(item))
        except Fault as fault:
            fault.path = (index, *fault.path)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return results


def entries(value: object, read: Callable[[Any, object], tuple[_K, _V] | None]) -> dict[_K, _V]:
    """Return what `read` makes of every key and value of a map; it gives None for what is left out.

    Raises Fault where `value` is no map, else Faults with the key of each entry that is wrong.
    """
    if not isinstance(value, dict):
        raise Fault(f"must be a map, not {describe(value)}")
    found: dict[_K, _V] = {}
    faults: list[Fault] = []
    for key, item in value.items():
        try:
            entry = read(key, item)
        except (Fault, Faults) as wrong:
            for fault in wrong.faults if isinstance(wrong, Faults) else (wrong,):
                fault.path = (key, *fault.path)
                faults.append(fault)
        else:
            if entry is not None:
                found[entry[0]] = entry[1]
    if faults:
        raise Faults(faults)
    return found


def labels(value: object) -> dict[str, str]:
    """Return labels by key; a value is at most 63 characters."""
    return _notes(value, "label", 63)


def annotations(value: object) -> dict[str, str]:
    """Return annotations by key; a value is at most 4096 characters."""
    return _notes(value, "annotation", 4096)


def _notes(value: object, what: str, longest: int) -> dict[str, str]:
    def note(key: str, item: object) -> tuple[str, str]:
        if _LABEL.fullmatch(key) is None:
            raise Fault(
                f"the {what} {quote(key)} must be letters, digits and '-_./', the first and last no punctuation",
                subject=False,
                at_key=True,
            )
        shown = written(item)
        if len(shown) > longest or not shown.isprintable():
            raise Fault(f"must be at most {longest} printable characters")
        return key, shown

    return entries(value, note)


def hostname(value: object) -> str:
    """Return a host name of at most 64 bytes, which is all that Linux keeps."""
    found = text(value)
    if _HOSTNAME.fullmatch(found) is None or len(found) > 64:
        raise Fault(f"must be a host name of at most 64 characters, not {quote(found)}")
    return found


def keys_of(items: Iterable[object], read: Callable[[object], str]) -> dict[str, object]:
    """Turn a list of names, each by `read` and none twice, into the map of a long form, with nothing said of any."""
    found: dict[str, object] = {}
    faults = []
    for index, item in enumerate(items):
        try:
            key = read(item)
            if key in found:
                raise Fault(f"names {quote(key)} a second time")
            found[key] = {}
        except Fault as fault:
            fault.path = (index,)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return found


def _octal(value: object, pattern: re.Pattern[str]) -> int:
    if type(value) is int:
        return value
    if isinstance(value, WrittenInt):
        raise Fault(f'must be a string such as "0440", not {describe(value)}', hint=quoted(value))
    found = text(value)
    if pattern.fullmatch(found) is None:
        raise Fault(f'must be permission bits such as "0440", not {quote(found)}')
    return int(found, 8)


def file_mode(value: object) -> int:
    """Return permission bits from an octal string; set-id bits and the sticky bit are refused."""
    return _octal(value, _MODE)


def directory_mode(value: object) -> int:
    """Return permission bits from an octal string; the sticky bit is allowed."""
    return _octal(value, _STICKY_MODE)


def host_ip(value: object) -> str:
    """Return an address of the device that a port may be published on, in its usual spelling."""
    found = text(value)
    try:
        address = ipaddress.ip_address(found.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise Fault(f"must be an IP address, not {quote(found)}") from error
    if address.version == 4:
        return str(address)
    if address.is_loopback:
        raise Fault(
            "can't be ::1: the kernel leads nothing from there into a container",
            hint="write 127.0.0.1, which programs that are asked for localhost try, too",
        )
    if address.ipv4_mapped is not None:
        raise Fault(
            f"must be an address as it is written, not {quote(found)}", hint=f"write {address.ipv4_mapped}"
        )
    if address.is_link_local or address.is_multicast:
        raise Fault(f"can't be {quote(found)}: nothing at such an address is led into a container")
    return str(address)


def ipv4_host_ip(value: object) -> str:
    """Return an IPv4 address of the device, in its usual spelling."""
    found = host_ip(value)
    if ":" in found:
        raise Fault(
            f"must be an IPv4 address, not {quote(found)}",
            hint="with 0.0.0.0 a container that has IPv6 is published on that, too",
        )
    return found


def duration(value: object) -> float:
    """Return seconds."""
    if type(value) is float:
        return value
    if isinstance(value, WrittenInt | WrittenFloat):
        hint = f"write {value.text}s" if isinstance(value, WrittenInt) and value >= 0 else ""
        raise Fault(f"must be a duration with a unit, not {describe(value)}", hint=hint)
    return parse_duration(text(value))


def positive_duration(value: object) -> float:
    """Return seconds, more than none."""
    seconds = duration(value)
    if not seconds:
        raise Fault("must be longer than 0s")
    return seconds


def size(value: object) -> int:
    """Return bytes."""
    if type(value) is int:
        return value
    return parse_bytes(value.text if isinstance(value, WrittenInt | WrittenFloat) else text(value))


def shm_size(value: object) -> int:
    """Return bytes, at least a page."""
    found = size(value)
    if found < 4 << 10:
        raise Fault(f"must be at least 4Ki, not {found}")
    return found


def cpus(value: object) -> int:
    """Return thousandths of a CPU, at least a hundredth of one."""
    if type(value) is int:
        millicores = value
    else:
        millicores = parse_cpus(value.text if isinstance(value, WrittenInt | WrittenFloat) else text(value))
    if not 10 <= millicores <= 1_024_000:
        raise Fault("must be from 0.01 to 1024")
    return millicores


def percent(value: object) -> int:
    """Return a whole number from 0 to 100."""
    if type(value) is int:
        return value
    return parse_percent(value.text if isinstance(value, WrittenInt | WrittenFloat) else text(value))


DURATION_PATTERN: Final = r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"
BYTES_SCHEMA: Final = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(Ki|Mi|Gi|k|M|G)?$"}]
}
TEXTS: Final = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}


def _string(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern} if pattern else {"type": "string"})


Text = Annotated[str, PlainValidator(text), _string("")]
Name = Annotated[str, PlainValidator(name), _string(f"^{NAME_PATTERN}$")]
AppName = Annotated[str, PlainValidator(app_name), _string(r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
ConfigName = Annotated[str, PlainValidator(config_name), _string(r"^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$")]
AbsolutePath = Annotated[str, PlainValidator(path), _string(r"^/")]
Target = Annotated[str, PlainValidator(target), _string(r"^/.")]
ImageReference = Annotated[
    Reference, PlainValidator(image), _string(r"^[^/@]+/[^@]+@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")
]
Labels = Annotated[dict[str, str], PlainValidator(labels), WithJsonSchema(TEXTS)]
Annotations = Annotated[dict[str, str], PlainValidator(annotations), WithJsonSchema(TEXTS)]
Hostname = Annotated[
    str | None, PlainValidator(hostname), WithJsonSchema({"type": "string", "maxLength": 64})
]
FileMode = Annotated[int, PlainValidator(file_mode), _string("^0?[0-7]{3}$")]
DirectoryMode = Annotated[int, PlainValidator(directory_mode), _string("^[01]?[0-7]{3}$")]
HostIp = Annotated[str, PlainValidator(host_ip), WithJsonSchema({"type": "string"})]
Ipv4HostIp = Annotated[
    str, PlainValidator(ipv4_host_ip), WithJsonSchema({"type": "string", "format": "ipv4"})
]
Duration = Annotated[float, PlainValidator(duration), _string(DURATION_PATTERN)]
PositiveDuration = Annotated[float, PlainValidator(positive_duration), _string(DURATION_PATTERN)]
OptionalName = Annotated[str | None, PlainValidator(name), _string(f"^{NAME_PATTERN}$")]
OptionalPath = Annotated[str | None, PlainValidator(path), _string(r"^/")]
OptionalRepositoryPath = Annotated[str | None, PlainValidator(repository_path), _string(r"^[^/]")]
OptionalText = Annotated[str | None, PlainValidator(text), _string("")]
OptionalBytes = Annotated[int | None, PlainValidator(size), WithJsonSchema(BYTES_SCHEMA)]
Bytes = Annotated[int, PlainValidator(size), WithJsonSchema(BYTES_SCHEMA)]
ShmSize = Annotated[int, PlainValidator(shm_size), WithJsonSchema(BYTES_SCHEMA)]
Cpus = Annotated[
    int | None,
    PlainValidator(cpus),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0.01}, {"type": "string", "pattern": r"^\d+m$"}]}
    ),
]
Percent = Annotated[int, PlainValidator(percent), _string(r"^\d{1,3} ?%$")]
