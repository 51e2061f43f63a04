"""The filter of a container: which profile it is under, and that compiled, once for all containers under the same.

The agent compiles a profile in some milliseconds the first time, and a container costs
nothing more; the bundle keeps the result, so that a program that `exec` adds years later is under the very same filter.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from reconciler.engine import bundle
from reconciler.engine.seccomp import default
from reconciler.errors import ReconcilerError
from reconciler.linux.seccomp import compile as compiler
from reconciler.shim import filter as file
from reconciler.spec import profile
from reconciler.spec.seccomp import UNCONFINED
from reconciler.state.desired import Container

MACHINE: Final = os.uname().machine


def write(path: Path, desired: Container, held: Collection[str]) -> Mapping[str, Any] | None:
    """Write the filter of a container to `path` and return the `linux.seccomp` of its config.json; None for no filter.

    `held` are the agent's own capabilities. Not durable, as the bundle is not. Raise ReconcilerError for a profile that
    can't be compiled.
    """
    found = section(desired, bundle.capabilities(desired.identity, held))
    path.unlink(missing_ok=True)
    if found is not None:
        path.write_bytes(compiled(found))
        path.chmod(0o600)
    return found


def section(
    desired: Container, capabilities: Collection[str], machine: str = MACHINE
) -> Mapping[str, Any] | None:
    """Return what `linux.seccomp` of its config.json is, None for a container that is not filtered.

    `capabilities` are the full names of those that its root has.
    """
    wanted = desired.identity.seccomp
    if desired.identity.privileged or wanted == UNCONFINED:
        return None
    if not wanted:
        return _default(frozenset(capabilities), machine)
    if f"sha256:{hashlib.sha256(desired.seccomp).hexdigest()}" != wanted:
        raise ReconcilerError(f"{desired.full_name}: its seccomp profile is not the one that it should have")
    return profile.resolve(desired.seccomp, capabilities, machine, _kernel())


def compiled(section: Mapping[str, Any], machine: str = MACHINE) -> bytes:
    """Return the file beside config.json, or raise ReconcilerError for a section that can't be compiled."""
    try:
        return _compiled(json.dumps(section, sort_keys=True), machine)
    except ValueError as error:
        raise ReconcilerError(f"seccomp: {error}") from error


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


@lru_cache(maxsize=32)
def _default(capabilities: frozenset[str], machine: str) -> Mapping[str, Any]:
    return default.section(capabilities, machine)


@lru_cache(maxsize=32)
def _compiled(text: str, machine: str) -> bytes:
    found = json.loads(text)
    return file.pack(compiler.compile(found, machine), compiler.flags(found))
