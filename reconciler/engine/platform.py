"""Which manifest of an index fits this device: operating system, architecture and variant.

The names are those of the OCI image index specification ("platform", GOOS and GOARCH values). Pure, apart from
`host_platform`, which asks the kernel once.
"""

import os
import re
from dataclasses import dataclass
from typing import Final

from reconciler.errors import ReconcilerError

_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
# What a missing variant means, as containerd's platforms package normalises it.
_DEFAULT_VARIANT: Final = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
_ALIASES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
_VARIANT: Final = re.compile(r"v([0-9]{1,2})(?:\.([0-9]{1,2}))?", re.ASCII)
_PART: Final = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


class PlatformError(ReconcilerError):
    """The image has nothing for this device's platform; the message names the wanted and the available ones."""


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """`variant` is "" where none is given; `os_version` and features are not looked at: Linux images have none."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Return the platform that `text` spells as os/architecture[/variant], or raise PlatformError."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise PlatformError(f"platform {text[:60]!r}: not of the form os/architecture[/variant]")
        return cls.normalised(*parts)

    @classmethod
    def normalised(cls, system: str, architecture: str, variant: str = "") -> "Platform":
        """Return the platform with aliases resolved, letters lowered and a default variant left out, except arm's."""
        architecture = architecture.lower()
        architecture = _ALIASES.get(architecture, architecture)
        variant = variant.lower()
        if _DEFAULT_VARIANT.get(architecture) == variant and architecture != "arm":
            variant = ""
        return cls(system.lower(), architecture, variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def level(self) -> tuple[int, int] | None:
        """The variant as a number that grows with what the processor can do; None where it isn't of the form vN."""
        match = _VARIANT.fullmatch(self.variant or _DEFAULT_VARIANT.get(self.architecture, "v0"))
        return None if match is None else (int(match[1]), int(match[2] or 0))

    def runs(self, other: "Platform") -> bool:
        """Tell whether a device of this platform runs programs built for `other`."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        if self.level is None or other.level is None:
            return self.variant == other.variant
        return other.level <= self.level


def host_platform() -> Platform:
    """The platform of the running kernel."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)
