"""Other people's tools at work on images: podman (buildah within), skopeo and umoci, each with a place of its own.

podman keeps everything in one directory, by its driver `vfs`, which mounts nothing; each call has a mount and a network
namespace of its own.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kernel.rootfs import Tree, scan

_STORAGE = '[storage]\ndriver = "vfs"\nrunroot = "{0}/run"\ngraphroot = "{0}/root"\n'


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


class Podman:
    """podman with its storage below `path`; its answers are what it prints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "storage.conf").write_text(_STORAGE.format(path))
        # The other type of lock is a file of the machine's, /dev/shm/libpod_lock
        (path / "containers.conf").write_text('[engine]\nlock_type = "file"\n')
        (path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(path / "storage.conf"),
            "CONTAINERS_CONF": str(path / "containers.conf"),
            "TMPDIR": str(path),
            "HOME": str(path),
        }
        (path / ".config/containers").mkdir(parents=True)
        (path / ".config/containers/policy.json").write_text((path / "policy.json").read_text())

    def __call__(self, *words: str) -> str:
        command = ["unshare", "--mount", "--net", "--propagation=private", "podman"]
        command += ["--root", f"{self.path}/root", "--runroot", f"{self.path}/run", "--storage-driver", "vfs"]
        command += [
            "--tmpdir",
            f"{self.path}/tmp",
            "--events-backend",
            "file",
            "--cgroup-manager",
            "cgroupfs",
        ]
        return _run([*command, *words], self._environment)

    def build(self, name: str, containerfile: str, context: Path) -> None:
        """Build an image as `podman build` does, which is buildah; a RUN sees no network."""
        path = self.path / "Containerfile"
        path.write_text(containerfile)
        options = ("--quiet", "--isolation", "chroot", "--network", "host", "--pull=never", "--layers")
        self("build", *options, "--format", "oci", "--tag", name, "--file", str(path), str(context))

    def take(self, source: str, name: str) -> None:
        """Bring an image in by that name, whatever `source` (oci:..., dir:...) calls it."""
        place = f"[vfs@{self.path}/root+{self.path}/run]"
        _run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", source, f"containers-storage:{place}{name}"],
            self._environment,
        )

    def unpacked(self, image: str) -> Tree:
        """Describe the root file system that podman has made of `image`."""
        try:
            return scan(Path(self("image", "mount", image)))
        finally:
            self("image", "unmount", image)


def skopeo(source: str, target: str, *options: str) -> None:
    """Copy an image."""
    _run(["skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target])


def umoci(*words: str) -> None:
    _run(["umoci", *words])
