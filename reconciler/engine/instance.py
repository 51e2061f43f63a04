"""The state directory as a whole: made once, owned by one writer at a time, known by a random id.

Kernel names (bridges, cgroups, the nftables table) derive from the id, so that two instances with different
state directories never meet, whatever their paths are.
"""

import fcntl
import json
import os
import secrets
from pathlib import Path
from types import TracebackType

from reconciler.engine.durable import make_bytes, sync_directory
from reconciler.engine.layout import Layout
from reconciler.errors import BlockedError, ReconcilerError

_SUN_PATH_MAX = 107  # sizeof(sockaddr_un.sun_path) - 1, unix(7)


def prepare(layout: Layout) -> str:
    """Make the state and run directories if they are missing and return the instance id: 16 hex digits.

    Several may do so at once, before one of them takes the lock: all get the same id.
    """
    longest = str(layout.control_socket("0" * 32))
    if len(longest) > _SUN_PATH_MAX:
        raise ReconcilerError(
            f"{layout.run}: the path is too long for a unix socket below it ({len(longest)} > {_SUN_PATH_MAX} bytes)",
            hint="use a shorter one: --run DIR",
        )
    _make(layout.state, 0o700)
    _make(layout.run, 0o711)
    for directory in (
        layout.containers,
        layout.volumes,
        layout.trash,
        layout.network,
        layout.lastgood_root,
        layout.generations,
        layout.previous_root,
    ):
        directory.mkdir(mode=0o700, exist_ok=True)
    layout.run_containers.mkdir(mode=0o711, exist_ok=True)
    if not layout.key.exists():
        make_bytes(layout.key, secrets.token_bytes(32))
    if not layout.instance.exists():
        make_bytes(layout.instance, secrets.token_hex(8).encode() + b"\n")
    return read_id(layout)


def read_id(layout: Layout) -> str:
    """The instance id, or an error that says that there is no state here."""
    try:
        text = layout.instance.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise ReconcilerError(
            f"{layout.state}: no agent has run with this state directory",
            hint="run: reconciler agent SPECS, or name the directory with --state DIR",
        ) from error
    except PermissionError as error:
        raise ReconcilerError(f"{layout.state}: permission denied", hint="run it as root") from error
    if len(text) != 16 or not all(c in "0123456789abcdef" for c in text):
        raise ReconcilerError(
            f"{layout.instance}: not an instance id: {text[:40]!r}",
            hint="write it back: it is what follows reconciler- in the names of this device's cgroups",
        )
    return text


class StateLock:
    """The right to change this state directory: held by the agent, or by one verb where no agent runs.

    The lock is the kernel's (flock), so it can't outlive its holder; the file's text only names the holder.
    """

    def __init__(self, layout: Layout, holder: str) -> None:
        self._path = layout.agent_lock
        self._holder = holder
        self._fd = -1

    def acquire(self) -> "StateLock":
        """Take the lock, or raise BlockedError naming who has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise BlockedError(
                f"{self._path.parent}: in use by {text}",
                hint="stop it first, or use another --state directory",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{self._holder} (pid {os.getpid()})\n".encode(), 0)
        self._fd = fd
        return self

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "StateLock":
        return self.acquire() if self._fd < 0 else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_agent(layout: Layout) -> dict[str, object] | None:
    """What the running agent wrote about itself (pid, started, metrics, revision), or None.

    It may have died since.
    """
    try:
        value = json.loads(layout.agent_record.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _make(path: Path, mode: int) -> None:
    if path.is_dir():
        return
    path.mkdir(
        mode=mode, parents=True, exist_ok=True
    )  # somebody who starts at the same moment may be quicker
    path.chmod(mode)
    sync_directory(path.parent)
