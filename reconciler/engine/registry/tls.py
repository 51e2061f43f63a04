"""Whose certificates registries are believed by, and which of its own this device shows them.

Files are read when a registry is first spoken to; one that can't be used is an error that names it, not less security.
"""

import ssl
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from reconciler.engine.registry.errors import CertificateError
from reconciler.spec.registries import ANY, Certificates

_NOTHING: Final = Certificates()


def own(certificates: Mapping[str, Certificates], registry: str) -> ssl.SSLContext:
    """Return the TLS settings for a registry itself, or raise CertificateError.

    It is believed by the system's authorities, those of every registry and its own, and shown the device's certificate
    for it, if there is one.
    """
    context = foreign(certificates, registry)
    mine = certificates.get(registry, _NOTHING)
    if mine.cert is not None and mine.key is not None:
        _show(context, mine.cert, mine.key)
    return context


def foreign(certificates: Mapping[str, Certificates], registry: str) -> ssl.SSLContext:
    """Return those for where the registry leads to: the same, but no certificate is shown there."""
    found = (certificates.get(name, _NOTHING).ca for name in (ANY, registry))
    return _trusting([path for path in found if path is not None])


def unused() -> ssl.SSLContext:
    """Return TLS settings that believe nobody, for plain http: to load the system's authorities takes 30 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _trusting(authorities: Sequence[str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in authorities:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(path, error) from error
    return context


def _show(context: ssl.SSLContext, cert: str, key: str) -> None:
    def ask() -> NoReturn:
        raise CertificateError(f"registries.ca {key}", "is encrypted, and nobody is there to ask")

    for path in (cert, key):
        try:
            status = Path(path).stat()
        except OSError as error:
            raise _unusable(path, error) from error
        if path == key and status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            hint = f"run: chmod 600 {path}"
            raise CertificateError(f"registries.ca {key}", f"others may read it (mode {mode:04o})", hint=hint)
    try:
        context.load_cert_chain(cert, key, password=ask)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(f"{cert} with {key}", error) from error


def _unusable(path: str, error: OSError) -> CertificateError:
    reason = (
        error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or str(error)
    )
    words = str(reason).replace("_", " ").lower() if isinstance(error, ssl.SSLError) else str(reason)
    return CertificateError(f"registries.ca {path}", f"can't be used: {words}")
