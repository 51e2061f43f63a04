"""What can go wrong with a registry, each failure with whether waiting may help.

Nothing in a message may be secret or hostile: addresses lose their query and user part, what a registry says is cut,
and its control characters are taken out (security: G12).
"""

import re
from typing import Final
from urllib.parse import urlsplit

from reconciler.errors import ReconcilerError

_MAX_DETAIL: Final = 300
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_QUERY: Final = re.compile(r"\?[^\s\"']+")
_USERINFO: Final = re.compile(r"//[^/\s@]+@")
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# What looks like a token: a JWT, or a long run of base64 that is no digest.
_SECRET: Final = re.compile(r"eyJ[A-Za-z0-9_=-]*(?:\.[A-Za-z0-9_=-]*)+|[A-Za-z0-9+_=-]{24,}")
_HEX: Final = re.compile(r"[0-9a-f]{64,128}")


def plain(text: str) -> str:
    """Make what a stranger said fit for one line of a log: short, printable, without addresses' queries or tokens."""
    text = _CONTROL.sub(" ", _ESCAPE.sub("", text[: 8 * _MAX_DETAIL]))
    text = _USERINFO.sub("//", _QUERY.sub("?...", text))
    text = _SECRET.sub(lambda found: found[0] if _HEX.fullmatch(found[0]) else "...", text)
    return text.strip()[:_MAX_DETAIL]


def address(url: str) -> str:
    """Spell a URL without its user part, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an unreadable address"
    return plain(f"{parts.scheme}://{host}{port}{parts.path}")


class RegistryError(ReconcilerError):
    """A registry answered, but not with what was asked for; `status` is its HTTP status.

    `retry_after` is what it asked us to wait, in seconds, already brought into a sane range; 0 where it said nothing.
    """

    def __init__(
        self, request: str, status: int, detail: str, *, hint: str = "", retry_after: float = 0
    ) -> None:
        super().__init__(
            f"{request}: {status} {plain(detail)}".rstrip(),
            hint=hint,
            transient=status in (408, 425, 429) or status >= 500,
        )
        self.status = status
        self.retry_after = retry_after
        if status == 404:
            self.exit_code = 8


class UnreachableRegistryError(RegistryError):
    """A registry did not answer: name resolution, connection, time-out, or a broken transfer."""

    def __init__(self, request: str, detail: str, *, hint: str = "") -> None:
        super().__init__(request, 0, detail, hint=hint)
        self.args = (f"{request}: {plain(detail)}",)
        self.transient = True


class CertificateError(RegistryError):
    """The registry's TLS certificate is not one this device trusts."""

    def __init__(self, request: str, detail: str, *, hint: str = "") -> None:
        super().__init__(request, 0, detail, hint=hint)
        self.args = (f"{request}: {plain(detail)}",)


class CredentialsError(RegistryError):
    """The registry wants to know who asks."""


class KeyringError(RegistryError):
    """What keeps credentials on this device, a file or a program, can't be used; `where` names it."""

    def __init__(self, where: str, detail: str, *, hint: str = "") -> None:
        super().__init__(where, 0, detail, hint=hint)
        self.args = (f"{where}: {plain(detail)}",)


class RefusedError(RegistryError):
    """The registry behaved in a way that a client must not go along with: a redirect, a realm, a malformed answer."""

    def __init__(self, request: str, detail: str, *, hint: str = "") -> None:
        super().__init__(request, 0, detail, hint=hint)
        self.args = (f"{request}: {plain(detail)}",)
