"""A container's root directory by descriptor, for people's copies: as its processes see it, or put together again.

Of a running container it is /proc/PID/root, held only after a pidfd and the start time have shown that the pid is still
that process; with it come its volumes and every other mount. Of one that does not run, the overlay is mounted anew in a
mount namespace of this process's own, so that nobody else can see it and it ends with us; never while a process may
have it mounted, because two overlays on one upper directory corrupt each other (overlayfs.rst, "Sharing and copying
layers"). Nothing ever runs in that root, and nothing is loaded from it.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.engine.layout import Layout
from reconciler.engine.process import open_pidfd, read_shim
from reconciler.engine.record import Record
from reconciler.engine.snapshot import held
from reconciler.errors import NotFoundError, ReconcilerError
from reconciler.linux import mount, namespace
from reconciler.shim import config, mounts, rootfs
from reconciler.shim.fields import ConfigError
from reconciler.shim.step import StepError
from reconciler.state.process import ProcessId


@dataclass(frozen=True, slots=True)
class Root:
    """A container's root directory (O_PATH), and the id of the device that 0 is in it: others follow it."""

    fd: int
    first: int = 0


@contextmanager
def open_root(layout: Layout, found: Record) -> Iterator[Root]:
    """Hold the container's root directory.

    For a container that does not run, this changes the mount namespace of the calling process: for short-lived ones
    only. Raises BlockedError while the container is being made, NotFoundError where its files are gone.
    """
    fd = _running(layout, found)
    if fd is not None:
        try:
            yield Root(fd, found.ids)
        finally:
            os.close(fd)
        return
    with held(layout.container(found.id), found.full_name):
        fd = _running(layout, found)  # it may have been made while we waited for nobody
        # Put together again it shows the ids that are on disk
        root = Root(_assembled(layout, found)) if fd is None else Root(fd, found.ids)
        try:
            yield root
        finally:
            os.close(root.fd)


def _running(layout: Layout, found: Record) -> int | None:
    shim = read_shim(layout.shim_record(found.id))
    return _of_process(shim.init, found) if shim is not None else None


def _of_process(init: ProcessId, found: Record) -> int | None:
    pidfd = open_pidfd(init)
    if pidfd is None:
        return None
    try:
        root = os.open(f"/proc/{init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            signal.pidfd_send_signal(pidfd, 0)  # still that process: then the root was its own
            if os.path.samestat(os.fstat(root), os.stat("/")):
                raise ReconcilerError(
                    f"container {found.full_name}: it has no root of its own yet", transient=True
                )
        except BaseException:
            os.close(root)
            raise
        return root
    except (ProcessLookupError, FileNotFoundError):
        return None
    finally:
        os.close(pidfd)


def _assembled(layout: Layout, found: Record) -> int:
    """Mount the overlay and what is bound into it, in a mount namespace of this process alone."""
    try:
        prepared = config.prepare(
            json.loads(layout.config(found.id).read_bytes()), str(layout.container(found.id))
        )
    except (OSError, ValueError, ConfigError) as error:
        raise NotFoundError(f"container {found.full_name}: nothing is left of its files ({error})") from error
    missing = [path for path in (*prepared.layers, prepared.upper, prepared.work) if not os.path.isdir(path)]
    if missing:
        raise NotFoundError(
            f"container {found.full_name}: nothing is left of its files: {missing[0]} is gone"
        )
    # Volumes, configs and host directories; what the kernel makes up belongs to running processes.
    prepared.mounts = tuple(
        entry for entry in prepared.mounts if entry.kind == "bind" and os.path.exists(entry.source)
    )
    for entry in prepared.mounts:
        entry.mapped = False
    namespace.unshare(namespace.CLONE_NEWNS)
    try:
        sources = mounts.take(prepared)
        root = rootfs.make(prepared)
        mounts.finish(mounts.mount_all(prepared, root, sources))
        if prepared.read_only:
            mount.mount_setattr(root.fd, set_=mount.MOUNT_ATTR_RDONLY)
    except StepError as error:
        raise ReconcilerError(f"container {found.full_name}: {error}") from error
    return root.fd
