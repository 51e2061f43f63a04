"""A place where tests unpack layers one over the other, on tmpfs, and look at them through overlayfs."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from reconciler.engine.limits import Limits
from reconciler.engine.lowers import Lowers
from reconciler.engine.tar import Reader
from reconciler.engine.unpack import Totals, Unpacker
from tests.kernel.rootfs import Tree, merged


class Workshop:
    """Unpacks layers one over the other into directories of its own."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self.layers: list[Path] = []
        self.indexes: list[Path] = []
        self._tries = 0

    def add(self, archive: bytes) -> Totals:
        """Unpack `archive` on top of what is there."""
        root, gone, index = (self.path / f"{name}{self._tries}" for name in ("layer", "gone", "index"))
        self._tries += 1
        root.mkdir(mode=0o755)
        gone.mkdir()
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (root, gone)]
        with index.open("w+b") as lines:
            unpacker = Unpacker(fds[0], fds[1], lines, limits=self.limits, room=lambda more: None)
            try:
                unpacker.extract(Reader([archive], self.limits))
                totals = unpacker.finish(Lowers(self.layers[::-1]))
            finally:
                unpacker.close()
                for fd in fds:
                    os.close(fd)
        self.layers.append(root)
        self.indexes.append(index)
        return totals

    def seen(self) -> Tree:
        return merged(self.layers, self.path)


def make_workshop() -> Iterator[Workshop]:
    """A fixture: a workshop on tmpfs, gone afterwards."""
    path = scratch("unpack")
    yield Workshop(path)
    remove(path)


def scratch(name: str) -> Path:
    """Make a new directory on tmpfs."""
    path = Path("/dev/shm") / f"reconciler-{name}-{secrets.token_hex(6)}"
    path.mkdir(mode=0o700)
    return path


def remove(path: Path) -> None:
    """Remove a directory with whatever depth a hostile layer gave it."""
    subprocess.run(["rm", "-rf", str(path)], check=True)
