"""Where credentials come from: the file that device.yaml names, with its helpers, then the file that `login` writes.

Nothing is looked at before a registry asks who is there. A file that others may read is not used: what is in it is no
secret any more.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from reconciler.engine.durable import replace_json
from reconciler.engine.registry import program
from reconciler.engine.registry.credentials import (
    LIMIT,
    ConfigFile,
    Credential,
    Password,
    document_of,
    key_of,
    parse_file,
    server_of,
)
from reconciler.engine.registry.errors import KeyringError

AUTHFILE: Final = "registries.authfile"


@dataclass(frozen=True, slots=True)
class Found:
    """Credentials and where they were: a file or a program, for messages."""

    credential: Credential
    origin: str


class Credentials(Protocol):
    """Whatever knows credentials."""

    def find(self, registry: str, repository: str) -> Found | None:
        """The credentials for a repository, or None; raises KeyringError."""
        ...

    def version(self) -> object:
        """A value that changes when other credentials may be found."""
        ...


class Nobody:
    """Knows none."""

    def find(self, registry: str, repository: str) -> Found | None:
        return None

    def version(self) -> object:
        return None


@dataclass(frozen=True, slots=True)
class Given:
    """Knows one, whatever it is asked for: what somebody has just typed."""

    credential: Credential

    def find(self, registry: str, repository: str) -> Found | None:
        return Found(self.credential, "this login")

    def version(self) -> object:
        return None


class Keyring:
    """The credentials of this device. `own` is the file of `login`, `authfile` the one that device.yaml names."""

    def __init__(
        self,
        own: Path,
        authfile: Path | None = None,
        *,
        ask: Callable[[str, str], Credential | None] = program.ask,
    ) -> None:
        self._own = own
        self._authfile = authfile
        self._ask = ask

    def version(self) -> object:
        """Changes with either file."""
        return tuple(_stamp(path) for path in (self._own, self._authfile) if path is not None)

    def find(self, registry: str, repository: str) -> Found | None:
        """The credentials for a repository: of the first source that has any, by the longest name that fits."""
        if self._authfile is not None:
            where = f"{AUTHFILE} {self._authfile}"
            file = read(self._authfile, where)
            if file is None:
                raise KeyringError(where, "no such file", hint="take it out of device.yaml, or write it")
            if helper := file.helper(registry):
                credential = self._ask(helper, server_of(registry))
                if credential is not None:
                    return Found(credential, f"docker-credential-{helper}")
            credential = file.find(registry, repository)
            if credential is not None:
                return Found(credential, where)
        own = read(self._own, str(self._own))
        credential = own.find(registry, repository) if own is not None else None
        return Found(credential, "reconciler login") if credential is not None else None

    def named_elsewhere(self, key: str) -> bool:
        """Whether the authfile has credentials, or a helper, for a host or host/prefix."""
        host, _, prefix = key.partition("/")
        file = read(self._authfile, AUTHFILE) if self._authfile is not None else None
        return file is not None and (bool(file.helper(host)) or file.find(host, prefix) is not None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read(path: Path, where: str) -> ConfigFile | None:
    """Return what a file of credentials says, None where there is none; KeyringError where it can't be used."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyringError(where, f"can't be read: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyringError(where, "not a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise KeyringError(where, f"others may read it (mode {mode:04o})", hint=f"run: chmod 600 {path}")
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(LIMIT + 1)
    finally:
        os.close(fd)
    return parse_file(data, where)


@contextmanager
def _changing(own: Path) -> Iterator[dict[str, Credential]]:
    """The credentials in the file of `login`; what was made of them meanwhile is written, whole and durable."""
    lock = os.open(own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = read(own, str(own))
        auths = dict(file.auths) if file is not None else {}
        before = dict(auths)
        yield auths
        if auths != before:
            replace_json(own, document_of(auths), mode=0o600)
    finally:
        os.close(lock)


def keep(own: Path, name: str, password: Password) -> None:
    """Keep a password for a host or host/prefix in the file of `login`."""
    with _changing(own) as auths:
        auths[key_of(name)] = password


def forget(own: Path, name: str) -> bool:
    """Forget what was kept for a host or host/prefix; False where nothing was."""
    with _changing(own) as auths:
        return auths.pop(key_of(name), None) is not None


def forget_all(own: Path) -> list[str]:
    """Forget everything that was kept, also where the file can't be read any more; returns for whom."""
    try:
        with _changing(own) as auths:
            names = sorted(auths)
            auths.clear()
            return names
    except KeyringError:
        replace_json(own, document_of({}), mode=0o600)
        return [str(own)]
