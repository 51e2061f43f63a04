"""Durations, sizes, shares of a CPU and percentages: text to exact numbers and back.

Each parser raises `Fault` with the spelling that was probably meant. Lower-case `m`, `g` and `mb` are refused because
the dialects disagree: `m` is a mebibyte to Docker and a thousandth to Kubernetes. Pure.
"""

import re
from typing import Final

from reconciler.spec.fault import Fault
from reconciler.spec.marks import quote

_DURATION: Final = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?", re.ASCII
)
_MILLISECONDS: Final = (86_400_000, 3_600_000, 60_000, 1_000, 1)
_DURATION_UNITS: Final = ("d", "h", "m", "s", "ms")
_LONGEST: Final = 3650 * 86_400_000

_BYTES: Final = re.compile(r"(\d{1,19})(Ki|Mi|Gi|k|M|G)?", re.ASCII)
_BYTE_UNITS: Final = {
    None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9,
}  # fmt: skip
_ALMOST_BYTES: Final = re.compile(r"(\d{1,19})(?:\.\d+)? ?([kmgtKMGT])(i?)[bB]?|(\d{1,19}) ?[bB]", re.ASCII)
_MOST_BYTES: Final = 2**63 - 1

_CPUS: Final = re.compile(r"(\d{1,6})(?:\.(\d{1,9}))?|(\d{1,9})m", re.ASCII)
_PERCENT: Final = re.compile(r"(\d{1,3}) ?%", re.ASCII)


def parse_duration(text: str) -> float:
    """Return the seconds that `text` (`1m30s`, `500ms`) means, exact to the millisecond, or raise Fault."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise Fault(f"must be a duration such as 1m30s, not {quote(text)}", hint=_duration_hint(text))
    total = sum(int(part) * unit for part, unit in zip(match.groups(), _MILLISECONDS, strict=True) if part)
    if total > _LONGEST:
        raise Fault(f"must be at most 3650d, not {quote(text)}")
    return total / 1000


def _duration_hint(text: str) -> str:
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return f"write {text}s"
    if match := re.fullmatch(r"(\d{1,9})\.(\d{1,3})s", text, re.ASCII):
        return f"write {int(match[1])}s{int(match[2].ljust(3, '0'))}ms"
    return "units are d, h, m, s, ms, in this order, each at most once"


def format_duration(seconds: float) -> str:
    """Return the shortest spelling that `parse_duration` reads back as `seconds`, rounded to milliseconds."""
    rest = round(seconds * 1000)
    parts = []
    for unit, name in zip(_MILLISECONDS, _DURATION_UNITS, strict=True):
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` (`64Mi`, `1G`, `4096`) means, or raise Fault."""
    match = _BYTES.fullmatch(text)
    if match is None:
        raise Fault(f"must be a size such as 64Mi, not {quote(text)}", hint=_bytes_hint(text))
    size = int(match[1]) * _BYTE_UNITS[match[2]]
    if size > _MOST_BYTES:
        raise Fault(f"must be less than 2^63 bytes, not {quote(text)}")
    return size


def _bytes_hint(text: str) -> str:
    match = _ALMOST_BYTES.fullmatch(text)
    if match is None or "." in text:
        return "a whole number with Ki, Mi, Gi (powers of 1024) or k, M, G (powers of 1000)"
    if match[4]:
        return f"write {match[4]}"
    letter = match[2].upper()
    if letter == "T":
        return f"write {match[1]}000G or {int(match[1]) * 1024}Gi"
    return f"write {match[1]}{letter}i (1024) or {match[1]}{'k' if letter == 'K' else letter} (1000)"


def format_bytes(size: int) -> str:
    """Return the shortest exact spelling of `size` in powers of 1024."""
    for name, unit in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def parse_cpus(text: str) -> int:
    """Return the thousandths of a CPU that `text` (`0.5`, `2`, `500m`) means, or raise Fault."""
    match = _CPUS.fullmatch(text)
    if match is None:
        raise Fault(f"must be a number of CPUs such as 0.5 or 500m, not {quote(text)}")
    if match[3]:
        return int(match[3])
    fraction = (match[2] or "").rstrip("0")
    if len(fraction) > 3:
        raise Fault(f"must be a whole number of thousandths of a CPU, not {quote(text)}")
    return int(match[1]) * 1000 + int(fraction.ljust(3, "0"))


def format_cpus(millicores: int) -> str:
    """Return `500m` or `2`, which `parse_cpus` reads back."""
    return str(millicores // 1000) if millicores % 1000 == 0 else f"{millicores}m"


def parse_percent(text: str) -> int:
    """Return the whole number from 0 to 100 that `text` (`85%`) means, or raise Fault."""
    match = _PERCENT.fullmatch(text)
    if match is None or int(match[1]) > 100:
        hint = f"write {text}%" if re.fullmatch(r"\d{1,2}", text, re.ASCII) else ""
        raise Fault(f"must be a percentage from 0% to 100%, not {quote(text)}", hint=hint)
    return int(match[1])
